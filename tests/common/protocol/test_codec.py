"""Decoding: a wrong value is named by its path, and a wrong word beside those that are allowed."""

from enum import StrEnum
from typing import Literal

import msgspec
import pytest

from common import config
from common.errors import ConfigError, RequestError
from common.protocol.codec import MSGPACK, convert, decode, encode


class Shade(StrEnum):
    LIGHT = "light"
    DARK = "dark"


class Pen(msgspec.Struct):
    shade: Shade | None = None
    tip: Literal["fine", "broad"] | int = "fine"


class Case(msgspec.Struct):
    pens: list[Pen] = []
    named: dict[str, Pen] = {}


@pytest.mark.parametrize(
    ("value", "param", "said"),
    [
        ({"pens": [{}, {"shade": "grey"}]}, "pens[1].shade", "Invalid enum value 'grey'; allowed: light, dark"),
        ({"pens": [{"tip": "soft"}]}, "pens[0].tip", "Invalid enum value 'soft'; allowed: broad, fine"),
        ({"named": {"a": {"shade": ""}}}, "named[...].shade", "Invalid enum value ''; allowed: light, dark"),
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
