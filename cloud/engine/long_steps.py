"""Tells an engine that computes a long step from one that is stuck."""

import time
from collections.abc import Iterable
from pathlib import Path

from cloud.engine.process_tree import ProcessTree
from cloud.vllm_plugin.step_file import StepRecord

SHORT_STEP_SECONDS = 10.0
"""What any step may take."""
SLACK = 10.0
"""A step may take this many times what its tokens took recently: long contexts, busy cores."""
UNMEASURED_SECONDS = 1.0
"""Per token, before the first measurement: a slow machine with a large model."""


def seconds_allowed(step: StepRecord) -> float:
    """How long a step may take before it counts as stuck; grows with its tokens."""
    return SHORT_STEP_SECONDS + SLACK * step.tokens * (step.seconds_per_token or UNMEASURED_SECONDS)


def within_allowance(steps: Iterable[StepRecord], now: float) -> bool:
    """Whether a step is being computed, and none for longer than it may take; `now` is `time.monotonic` in seconds."""
    running = [step for step in steps if step.began]
    return bool(running) and all(now - step.began < seconds_allowed(step) for step in running)


class LongSteps:
    """The announced steps of one engine's schedulers, whose files are in `folder`, and what its processes do."""

    def __init__(self, folder: Path, processes: ProcessTree) -> None:
        self._folder = folder
        self._processes = processes

    def computing(self) -> bool:
        """Whether the engine has computed since the last call: in a step within its allowance, and on the CPU.

        Both are needed: a stopped process is in a step, and one that waits in a loop for another uses the CPU.
        """
        used_cpu = self._processes.used_cpu()
        return used_cpu and within_allowance(self._records(), time.monotonic())

    def count(self) -> int:
        """Steps so far."""
        return sum(record.count for record in self._records())

    def _records(self) -> list[StepRecord]:
        return [StepRecord.read(path) for path in self._folder.iterdir()]
