"""Decoding: a wrong value is named by its path, and a wrong word beside those that are allowed."""

from typing import Any, Literal

import pytest
from msgspec import defstruct

from common import config
from common.enums import Objective
from common.errors import ConfigError, RequestError
from common.protocol.codec import JSON, MSGPACK, convert, decode, decode_request, encode

Pen = defstruct("Pen", [("use", Objective | None, None), ("tip", Literal["fine", "broad"] | int, 0)])
Case = defstruct("Case", [("pens", list[Pen], []), ("named", dict[str, Pen], {})])
Strict = defstruct("Strict", [("id", int), ("pens", list[Pen], [])], forbid_unknown_fields=True)


@pytest.mark.parametrize(
    ("value", "param", "said"),
    [
        ({"pens": [{}, {"use": "grey"}]}, "pens[1].use", "Invalid enum value 'grey'; allowed: latency, cost"),
        ({"pens": [{"tip": "soft"}]}, "pens[0].tip", "Invalid enum value 'soft'; allowed: broad, fine"),
        ({"named": {"a": {"use": ""}}}, "named[...].use", "Invalid enum value ''; allowed: latency, cost"),
        ({"pens": 3}, "pens", "Expected `array`, got `int`"),
        ([], None, "Expected `object`, got `array`"),
    ],
)
def test_a_wrong_value_is_named_by_its_path_and_a_wrong_word_beside_those_that_are_allowed(
    value: object, param: str | None, said: str
) -> None:
    for wrong in (
        lambda: decode(encode(value), Case),
        lambda: decode(encode(value, MSGPACK), Case, MSGPACK),
        lambda: convert(value, Case),
    ):
        with pytest.raises(RequestError) as error:
            wrong()
        assert (error.value.message, error.value.param) == (said, param)


def test_a_path_goes_on_behind_that_of_what_holds_the_value() -> None:
    with pytest.raises(RequestError) as error:
        convert({"pens": [{"tip": []}]}, Case, "cases[2]")
    assert error.value.param == "cases[2].pens[0].tip"
    with pytest.raises(RequestError) as error:
        convert(None, Case, "cases[2]")
    assert error.value.param == "cases[2]"


def test_a_wrong_word_in_the_config_is_named_beside_those_that_are_allowed() -> None:
    with pytest.raises(ConfigError, match=r"inference\.way: invalid enum value 'fast'; allowed: auto, rounds, cont"):
        config.load(flags=["inference.way=fast"])


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_a_field_of_a_request_that_is_null_is_as_if_absent_whatever_its_name_and_type(kind: str) -> None:
    body = encode({"id": 1, "pens": None, "unheard_of": None}, kind)
    assert decode_request(body, Strict, kind) == Strict(1)
    assert decode_request(body, dict[str, Any], kind) == {"id": 1}
    with pytest.raises(RequestError):
        decode(body, Strict, kind)  # a reply or frame of the other server


@pytest.mark.parametrize(
    ("value", "param", "said"),
    [
        ({"id": 1, "x": None, "unheard_of": 5}, None, "Object contains unknown field `unheard_of`"),
        ({"x": None, "id": "a"}, "id", "Expected `int`, got `str`"),
        ({"x": None, "id": None}, "id", "Expected `int`, got `null`"),
        ({"id": 1, "pens": [None]}, "pens[0]", "Expected `object`, got `null`"),
    ],
)
def test_beside_fields_that_are_null_the_wrong_one_is_named(value: object, param: str | None, said: str) -> None:
    with pytest.raises(RequestError) as error:
        decode_request(encode(value), Strict)
    assert (error.value.message, error.value.param) == (said, param)


@pytest.mark.parametrize("type_", [Strict, dict[str, Any]])
def test_an_empty_body_is_called_empty(type_: Any) -> None:
    with pytest.raises(RequestError, match="the body is empty"):
        decode_request(b"", type_)


def test_without_a_schema_too_the_field_with_a_number_beyond_64_bits_is_named() -> None:
    with pytest.raises(RequestError, match="tokens: integers must fit 64 bits") as error:
        decode(b'{"a": [1], "tokens": [5, 99999999999999999999]}', dict[str, Any])
    assert error.value.param == "tokens"
