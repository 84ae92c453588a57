"""A long step is told from a stuck engine by its tokens and by the CPU."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloud.engine.long_steps import SHORT_STEP_SECONDS, LongSteps, seconds_allowed, within_allowance
from cloud.engine.process_tree import ProcessTree
from cloud.vllm_plugin.step_file import StepFile, StepRecord

MEASURED = 0.01
"""Seconds per token."""


def test_a_step_may_take_longer_the_more_tokens_it_holds_and_the_slower_they_were() -> None:
    few, many = StepRecord(1.0, 100, MEASURED), StepRecord(1.0, 2000, MEASURED)
    assert SHORT_STEP_SECONDS < seconds_allowed(few) < seconds_allowed(many)
    assert seconds_allowed(StepRecord(1.0, 100, 2 * MEASURED)) > seconds_allowed(few)
    assert seconds_allowed(many) > 2 * 2000 * MEASURED  # a long context, or busy cores


def test_before_anything_was_measured_a_slow_machine_is_assumed() -> None:
    assert seconds_allowed(StepRecord(1.0, 2000, 0.0)) > seconds_allowed(StepRecord(1.0, 2000, MEASURED))


def test_an_engine_between_two_steps_is_not_within_a_step() -> None:
    assert not within_allowance([], 1.0)
    assert not within_allowance([StepRecord(0.0, 0, MEASURED)], 1.0)


def test_one_step_that_takes_too_long_is_not_covered_by_another_that_does_not() -> None:
    quick, stuck = StepRecord(1000.0, 1, MEASURED), StepRecord(1.0, 1, MEASURED)
    assert within_allowance([quick], 1001.0)
    assert not within_allowance([quick, stuck], 1001.0)


def test_the_web_server_reads_what_the_scheduler_announces(tmp_path: Path) -> None:
    file = StepFile(str(tmp_path))
    (path,) = tmp_path.iterdir()
    assert StepRecord.read(path) == StepRecord()
    before = time.monotonic()
    file.begin(300)
    step = StepRecord.read(path)
    assert before <= step.began <= time.monotonic()
    assert (step.tokens, step.seconds_per_token) == (300, 0.0)
    file.end()
    ended = StepRecord.read(path)
    assert (ended.began, ended.tokens) == (0.0, 0)
    assert 0 < ended.seconds_per_token < 1


def test_short_steps_say_nothing_about_the_time_of_a_token(tmp_path: Path) -> None:
    file = StepFile(str(tmp_path))
    file.begin(1)
    file.end()
    assert StepRecord.read(next(tmp_path.iterdir())).seconds_per_token == 0.0


def test_a_scheduler_without_a_folder_announces_nothing() -> None:
    file = StepFile(None)
    file.begin(5)
    file.end()


@pytest.mark.parametrize("in_a_step", [True, False])
def test_an_engine_computes_only_in_a_step(tmp_path: Path, in_a_step: bool) -> None:
    file = StepFile(str(tmp_path))
    if in_a_step:
        file.begin(300)
    steps = LongSteps(tmp_path, ProcessTree([os.getpid()]))
    steps.computing()
    sum(range(10**7))
    assert steps.computing() == in_a_step


def test_an_engine_that_waits_within_a_step_does_not_compute(tmp_path: Path) -> None:
    StepFile(str(tmp_path)).begin(300)
    with subprocess.Popen([sys.executable, "-c", "print('up', flush=True); input()"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        steps = LongSteps(tmp_path, ProcessTree([process.pid]))
        steps.computing()
        time.sleep(0.2)
        assert not steps.computing()
        process.kill()
