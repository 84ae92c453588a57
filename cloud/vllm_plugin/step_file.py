"""What an engine process announces of its current step, in a file that it and the web server map into memory.

An engine answers no message until its step ends; reading these numbers waits for nobody.
"""

import mmap
import os
import struct
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

STEPS_FOLDER = "EDGECLOUD_STEPS_FOLDER"
"""Environment variable of an engine's processes: each scheduler keeps a file here."""
RECORD = struct.Struct("<dqdq")
MEASURED_TOKENS = 16
"""Steps of fewer tokens take as long as reading the weights does, and say nothing about the time per token."""
RECENT = 0.3
"""Weight of the latest step in the mean of seconds per token."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One scheduler's current step."""

    began: float = 0.0
    """`time.monotonic` at its start, in seconds, the same in all processes of a machine; 0 between steps."""
    tokens: int = 0
    """Tokens that it computes."""
    seconds_per_token: float = 0.0
    """Mean over recent long steps; 0 before the first of them."""
    count: int = 0
    """Steps that were begun."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a scheduler's file."""
        data = path.read_bytes()
        return cls(*RECORD.unpack(data)) if len(data) == RECORD.size else cls()


class StepFile:
    """Owned by one scheduler, which calls `begin` and `end` around each step. Without a folder it does nothing."""

    def __init__(self, folder: str | None) -> None:
        self._memory: mmap.mmap | None = None
        self._record = StepRecord()
        if folder is not None:
            with (Path(folder) / str(os.getpid())).open("w+b") as file:
                file.truncate(RECORD.size)
                self._memory = mmap.mmap(file.fileno(), RECORD.size)

    def begin(self, tokens: int) -> None:
        self._write(StepRecord(time.monotonic(), tokens, self._record.seconds_per_token, self._record.count + 1))

    def end(self) -> None:
        step, mean = self._record, self._record.seconds_per_token
        if step.began and step.tokens >= MEASURED_TOKENS:
            latest = (time.monotonic() - step.began) / step.tokens
            mean = mean + RECENT * (latest - mean) if mean else latest
        self._write(StepRecord(0.0, 0, mean, step.count))

    def _write(self, record: StepRecord) -> None:
        self._record = record
        if self._memory is not None:
            RECORD.pack_into(self._memory, 0, *astuple(record))
