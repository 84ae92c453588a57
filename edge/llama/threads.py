"""How many threads compute a step: few that draw tokens, all that nobody else needs to read prompts.

A step ends when its slowest thread does, so a thread on a core that another process uses slows all of them down.
"""

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path

from common import hardware
from common.config_edge import EdgeModelConfig
from common.hardware import Setting

DRAWING_TOKENS = 32
"""A step of more tokens, and of more than one a sequence, reads a prompt."""
IGNORED_CORES = 0.25
"""Part of a core that other processes may keep busy before a thread is left out for them."""
INTERVAL_S = 0.3
"""Seconds over which the use of the cores is averaged at least; the system counts it in steps of 10 ms."""


def reading_threads(cores: int, unused: float | None) -> int:
    """Threads that read a prompt on up to `cores` cores, if other processes leave `unused` ones (None: unknown).

    At least half of the cores: with fewer this process would always give way.
    """
    if unused is None:
        return max(1, cores - 1)
    return max(1, cores // 2, min(cores, math.floor(unused + IGNORED_CORES)))


class UnusedCores:
    """Measures how many of `cpus` no other process keeps busy. The arguments after it are for tests."""

    def __init__(
        self,
        cpus: Collection[int],
        read: Callable[[], str] = lambda: Path("/proc/stat").read_text(),
        clock: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.process_time,
    ) -> None:
        self._names = {f"cpu{number}" for number in cpus}
        self._read, self._clock, self._own = read, clock, own
        self._unused: float | None = None
        self._last = self._sample()

    def mean(self) -> float | None:
        """The mean since an earlier call that is at least INTERVAL_S ago; None if the system does not say."""
        at, own, total, idle = self._last
        if self._clock() - at >= INTERVAL_S:
            self._last = now = self._sample()
            passed, counted = now[0] - at, now[2] - total
            mine = (now[1] - own) / passed
            self._unused = mine + len(self._names) * (now[3] - idle) / counted if counted else None
        return self._unused

    def _sample(self) -> tuple[float, float, int, int]:
        """Now, this process's CPU seconds, and the ticks of all `cpus` so far: all, and idle."""
        total = idle = 0
        try:
            lines = self._read().splitlines()
        except OSError:
            lines = []
        for line in lines:
            name, *counts = line.split()
            if name in self._names:
                ticks = [int(count) for count in counts[:8]]  # those after it are parts of the first ones
                total, idle = total + sum(ticks), idle + sum(ticks[3:5])
        return self._clock(), self._own(), total, idle


class StepThreads:
    """Threads for each step of one context: `config.threads` and `config.threads_batch`, where 0 leaves it to this."""

    def __init__(self, config: EdgeModelConfig, cores: int, unused: Callable[[], float | None]) -> None:
        self._cores = cores
        self._unused = unused
        self._fixed, self._fixed_batch = config.threads, config.threads_batch
        self._drawing_tokens = max(DRAWING_TOKENS, config.sequences)
        self.drawing = config.threads or max(1, cores - 1)
        self._reading = config.threads_batch or cores

    def of_step(self, tokens: int) -> int:
        """The threads for a step of `tokens` tokens."""
        if self._fixed_batch:
            return self.drawing if tokens <= self._drawing_tokens else self._fixed_batch
        unused = self._unused()  # also for short steps: the mean is then a recent one when a prompt comes
        if tokens <= self._drawing_tokens:
            return self.drawing
        self._reading = reading_threads(self._cores, unused)
        return self._reading

    def settings(self) -> dict[str, Setting]:
        """What was chosen, by the key of the config; `threads_batch` as of the last prompt."""
        given, left = "set in the configuration", "one core is left to the server itself"
        auto = f"all {self._cores} cores read prompts, fewer while other processes use them"
        return {
            "threads": Setting(self.drawing, given if self._fixed else left),
            "threads_batch": Setting(self._reading, given if self._fixed_batch else auto),
        }


def step_threads(config: EdgeModelConfig) -> StepThreads:
    """The threads for a context on this machine."""
    return StepThreads(config, hardware.usable_cores(), UnusedCores(hardware.usable_cpus()).mean)
