"""Continuous batching for the segments of a split model, in one thread: each step serves all jobs of one segment.

Jobs join and leave between steps. A segment's step either completes short jobs and computes the exit, or reads a part
of long inputs without the exit's norm and head. The two alternate, so that no job waits for a long prompt.
"""

import asyncio
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from common.errors import EngineError
from edge.confidence import Softmax
from edge.engine.worker import StepScheduler
from edge.llama.sampling import Logits
from edge.llama.segment import CHUNK, Feed, LlamaSegment, SegmentKV, Step
from edge.split.held import Begun
from edge.split.jobs import SegmentJob

LAST_STEP_INPUTS = 32
"""The most inputs of a job's last step. The exit is computed after each: cheaper than one more step for the last."""


class Ended(NamedTuple):
    """Message: the lease on a sequence has ended; what it holds is kept for later ones."""

    sequence: int


class Freed(NamedTuple):
    """Message: every segment forgets a sequence, of which nothing may be kept."""

    sequence: int


class SegmentBatcher(StepScheduler[SegmentJob]):
    """Owns the segments. `temperatures`: one for each exit; its logits are divided by it to compute the confidence."""

    def __init__(
        self,
        segments: Sequence[LlamaSegment],
        temperatures: Sequence[float],
        end_tokens: frozenset[int],
        inbox: SimpleQueue[SegmentJob | Begun | Ended | Freed | None],
        wake: Callable[[list[asyncio.Future[None]]], None],
    ) -> None:
        super().__init__(inbox, wake)
        self._segments = segments
        self._temperatures = temperatures
        self._end_tokens = end_tokens
        self._read_last = [False] * len(segments)
        """Whether each segment's last step read a part of long jobs."""
        self._kept: dict[int, list[SegmentKV]] = {}
        """Of each sequence whose last lease has ended: its KV, segment by segment."""
        self.steps = [0] * len(segments)
        self.rows = [0] * len(segments)

    def abort(self) -> None:
        for segment in self._segments:
            segment.abort(True)

    def free(self) -> None:
        for segment in self._segments:
            segment.free()

    def _receive(self, message: SegmentJob | Begun | Ended | Freed) -> None:
        if isinstance(message, Freed):
            self._kept.pop(message.sequence, None)
            for segment in self._segments:
                segment.forget(message.sequence)
        elif isinstance(message, Ended):
            self._kept[message.sequence] = [segment.take_out(message.sequence) for segment in self._segments]
        elif isinstance(message, Begun):
            self._begin(message)
        elif not message.cancelled:
            self._active.append(message)
            self._guarded(self._check_position, [message])
            self._collect_waiters()

    def _begin(self, begun: Begun) -> None:
        kept = self._kept.get(begun.source)
        self._kept.pop(begun.sequence, None)
        for at, (segment, length) in enumerate(zip(self._segments, begun.lengths, strict=True)):
            if kept is not None:
                segment.put_in(begun.sequence, kept[at], length)
            else:
                segment.share(begun.sequence, begun.source, length)
        for to, of, count in begun.rows:
            to[:count] = of[:count]

    def _check_position(self, jobs: list[SegmentJob]) -> None:
        """A job starts over if its lease was told of KV that is lost: its source failed in a step just before."""
        for job in jobs:
            held = self._segments[job.segment].held[job.sequence]
            if held == 0 < job.position:
                job.start_over()
            elif held != job.position:
                raise EngineError(f"of a sequence that should hold {job.position} positions {held} are held")

    def _step(self) -> None:
        at, jobs = self._next()
        portions = share_out(jobs, self._last_step(at))
        in_step = [job for job, _ in portions]
        self._guarded(lambda _: self._decode(at, portions), in_step)
        # Jobs of this step queue behind those that waited meanwhile.
        self._active = [job for job in self._active if job not in in_step] + in_step

    def _next(self) -> tuple[int, list[SegmentJob]]:
        """The segment of the longest waiting job, and those of its jobs that may be in its next step."""
        at = self._active[0].segment
        waiting = [job for job in self._active if job.segment == at]
        short = [job for job in waiting if len(job.pending) <= self._last_step(at)]
        long = [job for job in waiting if len(job.pending) > self._last_step(at)]
        reads = bool(long) and not (short and self._read_last[at])
        self._read_last[at] = reads
        return at, long if reads else short

    def _last_step(self, segment: int) -> int:
        """The most inputs of a job's last step."""
        return LAST_STEP_INPUTS if self._segments[segment].shows_states else CHUNK

    def _decode(self, at: int, portions: list[tuple[SegmentJob, int]]) -> None:
        """Computes the portions of these jobs in one call of segment `at`."""
        segment = self._segments[at]
        feeds = [Feed(job.sequence, job.pending[:count], job.rows(count)) for job, count in portions]
        segment.abort(False)
        self._in_step, self.step_tokens = [job for job, _ in portions], sum(count for _, count in portions)
        self._wake()
        step = None if all(job.cancelled for job in self._in_step) else segment.decode(feeds)
        if step is not None:
            self._take(at, portions, feeds, step)

    def _take(self, at: int, portions: list[tuple[SegmentJob, int]], feeds: list[Feed], step: Step) -> None:
        """Hands each job the output of its portion."""
        begin, states, completed = 0, step.states, list[SegmentJob]()
        for (job, count), feed in zip(portions, feeds, strict=True):
            job.read(count, None if states is None else states[begin : begin + count])
            begin += count
            if feed.rows:
                completed.append(job)
        self.steps[at] += 1
        self.rows[at] += begin
        if completed:
            self._predict(completed, step.logits, self._temperatures[at])

    def _predict(self, jobs: list[SegmentJob], logits: Logits, temperature: float) -> None:
        """Gives each job the exit's token from its row of `logits`, [B, V]; confidences are after its adjustments."""
        adjusts = any(job.adjusts for job in jobs)
        drawn = np.stack([job.adjusted(row) for job, row in zip(jobs, logits, strict=True)]) if adjusts else logits
        likeliest = drawn.argmax(axis=-1).tolist()
        confidences = (1.0 / Softmax.of(drawn * np.float32(1.0 / temperature)).total).tolist()
        for job, row, own, first, confidence in zip(jobs, drawn, logits, likeliest, confidences, strict=True):
            token = job.choose(row, first)
            job.predict(token, confidence, own, token in self._end_tokens)


def share_out(jobs: Sequence[SegmentJob], last_step: int) -> list[tuple[SegmentJob, int]]:
    """How many pending inputs of each job go into a step of CHUNK inputs.

    A job of up to `last_step` inputs gets all of them, or waits for the next step if they do not fit: two steps would
    take longer. Longer jobs share the room equally and keep at least one input, after which the exit is computed.
    """
    portions: list[tuple[SegmentJob, int]] = []
    room = CHUNK
    for at, job in enumerate(jobs):
        left = len(job.pending)
        count = left if left <= last_step else min(left - job.wants_exit, room // (len(jobs) - at))
        if 0 < count <= room:
            portions.append((job, count))
            room -= count
    return portions
