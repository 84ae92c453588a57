"""Bytes to typed values and back, JSON or MessagePack by content type. Knows nothing of sockets."""

import math
from typing import Any, TypeVar, get_origin

import msgspec

from common.errors import RequestError

JSON = "application/json"
MSGPACK = "application/msgpack"
PLAIN = frozenset((dict, list, str, int, float, bool, type(None)))
DEEPEST = 100
T = TypeVar("T")


def encode(value: object, content_type: str = JSON) -> bytes:
    return msgspec.msgpack.encode(value) if content_type == MSGPACK else msgspec.json.encode(value)


def decode(body: bytes, type_: type[T], content_type: str = JSON) -> T:
    """Raises RequestError with the path of what is wrong, also for nesting too deep to parse."""
    decoder = msgspec.msgpack.decode if content_type == MSGPACK else msgspec.json.decode
    try:
        value = decoder(body, type=type_)
        if dict in (type_, get_origin(type_)):
            _refuse_foreign(value)  # no types have done it
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        message, _, path = str(error).partition(" - at `$.")
        raise RequestError(f"{message or 'nested too deeply'}", param=path.rstrip("`") or None) from error
    return value


def _refuse_foreign(body: object) -> None:
    """Refuses integers beyond 64 bits, and what MessagePack can say and JSON cannot: NaN, dates, bytes, other keys.

    Level by level, so that a body of a million values is a few passes and not a million calls.
    """
    level: list[Any] = [body]
    for _ in range(DEEPEST):
        foreign = set(map(type, level)) - PLAIN
        if foreign:
            raise RequestError(f"{foreign.pop().__name__} is not a type of JSON")
        if not all(math.isfinite(value) for value in level if type(value) is float):
            raise RequestError("numbers must be finite")
        if not all(-(2**63) <= value < 2**63 for value in level if type(value) is int):
            raise RequestError("integers must fit 64 bits")
        objects = [value for value in level if type(value) is dict]
        if not all(type(key) is str for value in objects for key in value):
            raise RequestError("keys must be text")
        lists = [value for value in level if type(value) is list]
        level = [inner for value in objects for inner in value.values()] + [inner for value in lists for inner in value]
        if not level:
            return
    raise RequestError("nested too deeply")
