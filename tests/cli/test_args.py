"""Flags that take a number, of which none passes that makes no sense; and the log of every program."""

import argparse
import logging
import os
import subprocess
import sys
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


IN_BACKGROUND = """
import fcntl, os, signal, subprocess, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
terminal = termios.tcgetattr(0)
terminal[3] |= termios.TOSTOP
termios.tcsetattr(0, termios.TCSANOW, terminal)
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], process_group=0)
stopped = os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
child.kill()
sys.exit(stopped)
"""
"""Runs a program in the background of a terminal that stops such a one when it writes; 1: it was stopped."""


@pytest.mark.parametrize(("prepared", "stopped"), [("set_up_logging('INFO')", 0), ("None", 1)])
def test_no_terminal_stops_a_server_in_its_background_that_logs(prepared: str, stopped: int) -> None:
    program = f"from cli.args import set_up_logging; {prepared}; print('a line', flush=True)"
    master, slave = os.openpty()
    try:
        files = {"stdin": slave, "stdout": slave, "stderr": slave}
        command = [sys.executable, "-c", IN_BACKGROUND, program]
        assert subprocess.run(command, **files, start_new_session=True, timeout=60).returncode == stopped
    finally:
        os.close(master)
        os.close(slave)
