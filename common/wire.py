"""Bytes to typed values and back, JSON or MessagePack by content type. Knows nothing of sockets."""

from typing import TypeVar

import msgspec

from common.errors import RequestError

JSON = "application/json"
MSGPACK = "application/msgpack"
T = TypeVar("T")


def encode(value: object, content_type: str = JSON) -> bytes:
    return msgspec.msgpack.encode(value) if content_type == MSGPACK else msgspec.json.encode(value)


def decode(body: bytes, type_: type[T], content_type: str = JSON) -> T:
    """Raises RequestError with the path of what is wrong, also for nesting too deep to parse."""
    decoder = msgspec.msgpack.decode if content_type == MSGPACK else msgspec.json.decode
    try:
        return decoder(body, type=type_)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        message, _, path = str(error).partition(" - at `$.")
        raise RequestError(f"{message or 'nested too deeply'}", param=path.rstrip("`") or None) from error
