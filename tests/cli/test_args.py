"""Flags that take a number: what is none, or none that makes sense, is refused before anything starts."""

import argparse
from collections.abc import Callable

import pytest

from cli.args import amount, count, positive


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (count, ["1", "20"], ["0", "-1", "1.5", "nan", "x", ""]),
        (amount, ["0", "0.5", "1e3"], ["-0.1", "nan", "inf", "x", ""]),
        (positive, ["0.5", "1e3"], ["0", "-1", "nan", "inf", "-inf", "x", ""]),
    ],
)
def test_a_flag_takes_no_number_that_makes_no_sense(
    kind: Callable[[str], float], right: list[str], wrong: list[str]
) -> None:
    assert [kind(text) for text in right] == [float(text) for text in right]
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=r"^must be a (whole )?number .*, not "):
            kind(text)
