"""Threads: prompts are read on the cores that nobody else uses, tokens drawn on fewer, and logits never change."""

import os
import re
import subprocess
import sys
from collections.abc import Callable

import llama_cpp as c
import numpy as np
import pytest

from common.config_edge import EdgeModelConfig
from edge.llama.batch import SequenceTokens
from edge.llama.model import CHUNK, Llama
from edge.llama.threads import DRAWING_TOKENS, INTERVAL_S, StepThreads, UnusedCores, reading_threads
from tests.support.manual_clock import ManualClock

MODEL = "models/demo-edge.gguf"


@pytest.mark.parametrize(
    ("cores", "unused", "threads"),
    [
        (2, 2.0, 2),
        (2, 1.8, 2),
        (2, 1.7, 1),
        (2, 0.1, 1),
        (8, 8.0, 8),
        (8, 5.9, 6),
        (8, 1.0, 4),
        (4, 60.0, 4),
        (1, 1.0, 1),
        (1, 0.2, 1),
        (8, None, 7),
        (1, None, 1),
    ],
)
def test_a_prompt_is_read_on_the_cores_that_nobody_else_uses_but_on_half_at_least(
    cores: int, unused: float | None, threads: int
) -> None:
    assert reading_threads(cores, unused) == threads


class Machine:
    """Two cores, a clock, and ticks of 10 ms as /proc/stat counts them."""

    def __init__(self) -> None:
        self.clock, self.own = ManualClock(), 0.0
        self.busy, self.idle = [0, 0], [0, 0]

    def stat(self) -> str:
        ticks = zip(self.busy, self.idle, strict=True)
        lines = [f"cpu{n} {busy} 0 0 {idle} 0 0 0 0 0 0" for n, (busy, idle) in enumerate(ticks)]
        return "\n".join([f"cpu {sum(self.busy)} 0 0 {sum(self.idle)} 0 0 0 0 0 0", *lines, "intr 5", ""])

    def passes(self, seconds: float, busy: tuple[float, float], own: float) -> None:
        """Time passes; each core is busy for a share of it, and this process has used `own` cores of that."""
        self.clock.now += seconds
        self.own += own * seconds
        for core, share in enumerate(busy):
            self.busy[core] += round(100 * seconds * share)
            self.idle[core] += round(100 * seconds * (1 - share))

    def unused(self, cpus: tuple[int, ...] = (0, 1)) -> UnusedCores:
        return UnusedCores(cpus, self.stat, self.clock, lambda: self.own)


@pytest.mark.parametrize(
    ("busy", "own", "unused"),
    [((0, 0), 0, 2.0), ((1, 1), 2, 2.0), ((1, 1), 1, 1.0), ((1, 0), 0, 1.0), ((1, 1), 0.5, 0.5)],
    ids=["nobody", "this process", "both", "another", "others, and this process waits"],
)
def test_what_this_process_uses_itself_counts_as_unused(busy: tuple[float, float], own: float, unused: float) -> None:
    machine = Machine()
    cores = machine.unused()
    machine.passes(2.0, busy, own)
    assert cores.mean() == pytest.approx(unused)


def test_only_cores_that_this_process_may_use_count() -> None:
    machine = Machine()
    cores = machine.unused(cpus=(1,))
    machine.passes(2.0, busy=(1, 0), own=0)
    assert cores.mean() == pytest.approx(1.0)


def test_a_mean_is_kept_until_enough_time_has_passed_for_another() -> None:
    machine = Machine()
    cores = machine.unused()
    assert cores.mean() is None
    machine.passes(1.0, busy=(0, 0), own=0)
    assert cores.mean() == pytest.approx(2.0)
    machine.passes(INTERVAL_S / 2, busy=(1, 1), own=0)
    assert cores.mean() == pytest.approx(2.0)
    machine.passes(INTERVAL_S, busy=(1, 1), own=0)
    assert cores.mean() == pytest.approx(0.0)


@pytest.mark.parametrize("stat", ["", "cpu0 0 0 0 0 0 0 0 0\n"], ids=["no lines", "no ticks"])
def test_where_the_system_does_not_say_nothing_is_known(stat: str) -> None:
    clock = ManualClock()
    cores = UnusedCores((0, 1), lambda: stat, clock, lambda: 0.0)
    clock.now += 5
    assert cores.mean() is None


def test_a_system_without_such_a_file_is_no_error() -> None:
    def missing() -> str:
        raise FileNotFoundError

    assert UnusedCores((0,), missing).mean() is None


def of_steps(config: EdgeModelConfig, unused: Callable[[], float | None] = lambda: 4.0) -> list[int]:
    """The threads of a short and of a long step on four cores."""
    threads = StepThreads(config, 4, unused)
    return [threads.of_step(count) for count in (DRAWING_TOKENS, DRAWING_TOKENS + 1)]


def test_short_steps_leave_a_core_to_the_server_and_long_ones_take_all() -> None:
    assert of_steps(EdgeModelConfig()) == [3, 4]
    assert of_steps(EdgeModelConfig(), lambda: 2.0) == [3, 2]


def test_what_the_configuration_sets_is_kept_on_any_machine() -> None:
    assert of_steps(EdgeModelConfig(threads=1)) == [1, 4]
    assert of_steps(EdgeModelConfig(threads_batch=2)) == [3, 2]
    assert of_steps(EdgeModelConfig(threads=9, threads_batch=7), lambda: 0.0) == [9, 7]


def test_a_token_for_each_of_many_sequences_is_a_short_step() -> None:
    threads = StepThreads(EdgeModelConfig(sequences=64), 4, lambda: 4.0)
    assert [threads.of_step(count) for count in (64, 65)] == [3, 4]


def test_choices_say_what_the_last_prompt_was_read_with() -> None:
    left = [4.0]
    threads = StepThreads(EdgeModelConfig(threads=2), 4, left.pop)
    assert {name: setting.value for name, setting in threads.settings().items()} == {"threads": 2, "threads_batch": 4}
    left.append(2.0)
    threads.of_step(CHUNK)
    assert threads.settings()["threads_batch"].value == 2
    assert threads.settings()["threads"].why == "set in the configuration"


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_logits_do_not_depend_on_the_number_of_threads(kv_type: str) -> None:
    prompt = [5 + at % 4000 for at in range(CHUNK)]
    logits = []
    for threads in (1, 2, 3):
        config = EdgeModelConfig(path=MODEL, kv_type=kv_type, threads=threads, threads_batch=threads)  # type: ignore[arg-type]
        llama = Llama(config)
        steps = [[SequenceTokens(0, prompt, 2)], [SequenceTokens(0, [7], 1), SequenceTokens(1, prompt[:9], 1)]]
        logits.append([rows.copy() for step in steps if (rows := llama.decode(step)) is not None])
        llama.free()
    for others in logits[1:]:
        for rows, expected in zip(others, logits[0], strict=True):
            np.testing.assert_array_equal(rows, expected)


def test_llama_cpp_computes_each_step_with_the_threads_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = Llama(EdgeModelConfig(path=MODEL, threads=1, threads_batch=2))
    used: list[tuple[int, int]] = []
    decode = c.llama_decode

    def recorded(context: object, batch: c.llama_batch) -> int:
        used.append((c.llama_n_threads(context), c.llama_n_threads_batch(context)))
        return int(decode(context, batch))

    monkeypatch.setattr(c, "llama_decode", recorded)
    for count in (CHUNK, 1, 4, CHUNK):
        llama.decode([SequenceTokens(0, [5] * count, 1)])
    llama.free()
    assert used == [(2, 2), (1, 1), (1, 1), (2, 2)]


def spin_count(**given: str) -> str:
    """What libgomp has when llama.cpp has loaded it, in a process whose environment has `given`."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    shown = subprocess.run(
        [sys.executable, "-c", "import edge.llama.context"],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search("GOMP_SPINCOUNT = '(.*)'", shown.stderr)
    return found[1] if found else pytest.skip("this llama.cpp is built without libgomp")


def test_waiting_threads_soon_leave_their_core_to_those_that_compute() -> None:
    """With libgomp's own default a step takes several times as long beside a busy process."""
    assert spin_count() == "1000"


def test_a_spin_count_from_the_environment_is_kept() -> None:
    assert spin_count(GOMP_SPINCOUNT="77") == "77"
