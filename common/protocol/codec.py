"""Bytes to typed values and back, JSON or MessagePack by content type. Knows nothing of sockets."""

import math
from typing import Any, TypeVar, get_origin

import msgspec

from common.errors import RequestError

JSON = "application/json"
MSGPACK = "application/msgpack"
PROTOCOL = "1"
"""What edge and cloud say to each other, its messages and their meaning; another number is not understood."""
PROTOCOL_HEADER = "X-Edgecloud-Protocol"
"""Both servers say theirs in every answer."""
SUBPROTOCOL = f"edgecloud.{PROTOCOL}"
"""The same of a WebSocket, which the edge offers and the cloud agrees to."""
PLAIN = frozenset((dict, list, str, int, float, bool, type(None)))
DEEPEST = 100
MOST_NESTED = 10_000
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

    Level by level and kind by kind: a body of a million numbers is a few passes in C, and one of as many objects none.
    """
    level: list[Any] = [body]
    for _ in range(DEEPEST):
        kinds = set(map(type, level))
        if foreign := kinds - PLAIN:
            raise RequestError(f"{foreign.pop().__name__} is not a type of JSON")
        if float in kinds and not all(math.isfinite(value) for value in level if type(value) is float):
            raise RequestError("numbers must be finite")
        if int in kinds:
            numbers = level if kinds == {int} else [value for value in level if type(value) is int]
            if min(numbers) < -(2**63) or max(numbers) >= 2**63:
                raise RequestError("integers must fit 64 bits")
        nested = [value for value in level if type(value) in (dict, list)] if kinds & {dict, list} else []
        if len(nested) > MOST_NESTED:
            raise RequestError(f"holds more than {MOST_NESTED} lists and objects")
        if not nested:
            return
        if any(type(key) is not str for value in nested if type(value) is dict for key in value):
            raise RequestError("keys must be text")
        level = [inner for value in nested for inner in (value.values() if type(value) is dict else value)]
    raise RequestError("nested too deeply")
