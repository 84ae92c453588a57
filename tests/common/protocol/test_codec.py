"""Decoding: a wrong value is named by its path, and a wrong word beside those that are allowed."""

from typing import Literal

import pytest
from msgspec import defstruct

from common import config
from common.enums import Objective
from common.errors import ConfigError, RequestError
from common.protocol.codec import MSGPACK, convert, decode, encode

Pen = defstruct("Pen", [("use", Objective | None, None), ("tip", Literal["fine", "broad"] | int, 0)])
Case = defstruct("Case", [("pens", list[Pen], []), ("named", dict[str, Pen], {})])


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
