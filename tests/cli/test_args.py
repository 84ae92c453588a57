"""Flags that take a number, of which none passes that makes no sense; and the log of every program."""

import argparse
import logging
from collections.abc import Callable

import pytest

from cli import args
from cli.args import amount, count, positive
from common.errors import LONGEST_TEXT


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


def test_no_line_of_a_programs_log_is_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    args.set_up_logging("INFO")
    logging.getLogger("edge").info("a client asks for %s", "x" * 10 * LONGEST_TEXT)
    assert 0 < len(capsys.readouterr().err) < 2 * LONGEST_TEXT
