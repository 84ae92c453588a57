"""Encodes and decodes typed values as JSON or MessagePack, by content type."""

import functools
import math
import re
from typing import Any, TypeVar, cast, get_origin

import msgspec
from msgspec import inspect

from common.errors import RequestError

JSON = "application/json"
MSGPACK = "application/msgpack"
PROTOCOL = "2"
"""Version of the messages between edge and cloud and of their meaning; both sides must have the same."""
PROTOCOL_HEADER = "X-Edgecloud-Protocol"
"""Header of every reply of both servers, with their protocol version."""
SUBPROTOCOL = f"edgecloud.{PROTOCOL}"
"""The same version as a WebSocket subprotocol, which the edge offers and the cloud accepts."""
REQUEST_ID_PATTERN = r"^[!-~]{0,128}\Z"
"""Visible ASCII: a space or a line's end in a request's id would let a client write fields and lines of a log."""
JSON_TYPES = frozenset((dict, list, str, int, float, bool, type(None)))
NULL = {JSON: b"null", MSGPACK: b"\xc0"}
MAX_DEPTH = 100
MAX_CONTAINERS = 10_000
"""Lists and objects at one level of a body without a schema."""
T = TypeVar("T")
_info = functools.cache(inspect.type_info)  # 2.5 ms for the largest request


def encode(value: object, content_type: str = JSON) -> bytes:
    return msgspec.msgpack.encode(value) if content_type == MSGPACK else msgspec.json.encode(value)


def decode(body: bytes, type_: type[T], content_type: str = JSON) -> T:
    """`body` as `type_`; raises RequestError, with the wrong field's path as `param`, also for too deep nesting."""
    decoder = msgspec.msgpack.decode if content_type == MSGPACK else msgspec.json.decode
    try:
        value = decoder(body, type=type_)
        if dict in (type_, get_origin(type_)):
            # A dict has no types of fields that would have checked its values.
            _check_fields(cast(dict[str, Any], value))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        message, path = fault(error, type_)
        raise RequestError(message, param=path.lstrip(".") or None) from error
    return value


def decode_request(body: bytes, type_: type[T], content_type: str = JSON) -> T:
    """As `decode`; a field of the body itself that is null is as if absent, whatever its name and type."""
    if not body:
        raise RequestError("the body is empty")
    try:
        value = decode(body, type_, content_type)
    except RequestError:
        # Only a body that was refused is read once more: most have no null, or only where a field takes one.
        if (rest := _without_nulls(body, type_, content_type)) is None:
            raise
        return decode(rest, type_, content_type)
    if isinstance(value, dict):
        return cast(T, {name: field for name, field in value.items() if field is not None})
    return value


def _without_nulls(body: bytes, type_: Any, content_type: str) -> bytes | None:
    """The body without those fields that are null, except required ones, whose error should name them; None if there
    are none, or it is no object."""
    if not (isinstance(type_, type) and issubclass(type_, msgspec.Struct)):
        return None
    required = {field.encode_name for field in msgspec.structs.fields(type_) if field.required}
    decoder = msgspec.msgpack.decode if content_type == MSGPACK else msgspec.json.decode
    try:
        fields = decoder(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    null = NULL[MSGPACK if content_type == MSGPACK else JSON]
    kept = {name: value for name, value in fields.items() if name in required or bytes(value) != null}
    return encode(kept, content_type) if len(kept) < len(fields) else None


def convert(value: object, type_: type[T], param: str = "") -> T:
    """What was decoded without a schema, as `type_`; raises RequestError with the wrong field's path behind `param`."""
    try:
        return msgspec.convert(value, type_)
    except (msgspec.ValidationError, RecursionError) as error:
        message, path = fault(error, type_)
        raise RequestError(message, param=(param + path).lstrip(".") or None) from error


def fault(error: Exception, type_: Any) -> tuple[str, str]:
    """What msgspec says of a value of `type_`, with the allowed words, and where: `.tools[0].type` or empty."""
    if isinstance(error, RecursionError):
        return "nested too deeply", ""
    message, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`")
    if message.startswith("Invalid enum value"):
        steps = [name or "[" for name in re.findall(r"\.([^.\[]+)|\[[^]]*]", path)]
        words = ", ".join(dict.fromkeys(_words(_info(type_), steps)))
        message += f"; allowed: {words}" if words else ""
    return message, path


def _words(info: inspect.Type, steps: list[str]) -> list[str]:
    """The words that are allowed where `steps` lead from a type: names of fields, `[` into a list or dict."""
    match info, steps:
        case inspect.UnionType(types=types), _:
            return [word for each in types for word in _words(each, steps)]
        case inspect.Metadata(type=inner), _:
            return _words(inner, steps)
        case inspect.EnumType(cls=cls), []:
            return [str(word.value) for word in cls]
        case inspect.LiteralType(values=values), []:
            return [str(value) for value in values]
        case inspect.StructType(fields=fields), [name, *rest]:
            return [word for field in fields if field.encode_name == name for word in _words(field.type, rest)]
        case inspect.ListType(item_type=inner) | inspect.DictType(value_type=inner), ["[", *rest]:
            return _words(inner, rest)
    return []


def _check_fields(body: dict[str, Any]) -> None:
    """Checks all at once; only to name the wrong field one by one."""
    try:
        _check_json_types(body)
    except RequestError:
        for name, value in body.items():
            try:
                _check_json_types(value)
            except RequestError as error:
                raise RequestError(f"{name}: {error.message}", param=str(name)) from error
        raise


def _check_json_types(body: object) -> None:
    """Refuses integers beyond 64 bits and what only MessagePack can encode: NaN, dates, bytes, keys that are not text.

    It checks one nesting level and one type at a time: a million numbers take a few passes in C, and a million objects
    are refused by their count.
    """
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        types = set(map(type, level))
        if foreign := types - JSON_TYPES:
            raise RequestError(f"{foreign.pop().__name__} is not a type of JSON")
        if float in types and not all(math.isfinite(value) for value in level if type(value) is float):
            raise RequestError("numbers must be finite")
        if int in types:
            numbers = level if types == {int} else [value for value in level if type(value) is int]
            if min(numbers) < -(2**63) or max(numbers) >= 2**63:
                raise RequestError("integers must fit 64 bits")
        nested = [value for value in level if type(value) in (dict, list)] if types & {dict, list} else []
        if len(nested) > MAX_CONTAINERS:
            raise RequestError(f"holds more than {MAX_CONTAINERS} lists and objects")
        if not nested:
            return
        if any(type(key) is not str for value in nested if type(value) is dict for key in value):
            raise RequestError("keys must be text")
        level = [inner for value in nested for inner in (value.values() if type(value) is dict else value)]
    raise RequestError("nested too deeply")
