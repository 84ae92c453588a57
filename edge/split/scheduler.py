"""The one thread of a split model's segments: each step is a part of all that waits for one. Knows no event loop.

Jobs join and leave between steps. A segment's step either ends jobs, and its exit is heard, or reads on in long ones,
and neither norm nor head of the exit are computed; the two take turns, so that nobody waits for a long prompt.
"""

import asyncio
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from common.types import Sampling
from edge.confidence import Softmax
from edge.engine.jobs import EngineJob
from edge.engine.worker import StepScheduler
from edge.llama.sampling import Logits, draw, is_greedy, uniforms
from edge.llama.segment import CHUNK, Feed, LlamaSegment, States, Step

FEW = 32
"""Inputs that are read with an exit's norm and head after each: cheaper than a step more for the last one's alone."""


class ExitPrediction(NamedTuple):
    """What an exit says is the next token, how sure it is of its likeliest one, and whether that is enough."""

    token_id: int
    confidence: float
    sure: bool


class SegmentJob(EngineJob):
    """Inputs for one sequence of one segment; then, up to `limit` times, the next token by its exit.

    The first segment goes on by itself as long as `sure` says so of the token's confidence; the others guess once.
    With `limit` 0 the exit is not heard at all.
    """

    def __init__(
        self,
        segment: int,
        sequence: int,
        position: int,
        inputs: list[int] | States,
        states: States | None,
        limit: int,
        sampling: Sampling,
        sure: Callable[[float], bool],
    ) -> None:
        """`position`: of the first input; `states`, [>= positions, H], takes what the segment makes of each."""
        super().__init__()
        self.segment = segment
        self.sequence = sequence
        self.position = position
        self.pending = inputs
        self.guesses: list[ExitPrediction] = []
        self._states = states
        self._limit = limit
        self._sampling = sampling
        self._sure = sure
        self._seen = 0

    @property
    def hears_exit(self) -> bool:
        return self._limit > 0

    def rows(self, count: int) -> int:
        """After how many of the last of `count` pending inputs the exit is heard."""
        return int(self.hears_exit and count == len(self.pending))

    def read(self, count: int, states: States | None) -> None:
        """Its next `count` inputs were computed; `states`, [count, H], came of them."""
        if self._states is not None and states is not None:
            self._states[self.position : self.position + count] = states
        self.position += count
        self.pending = self.pending[count:]
        self.done = not len(self.pending) and not self._limit

    def choose(self, logits: Logits, likeliest: int) -> int:
        """The next token, from the logits before it, [V], and the largest of them."""
        if is_greedy(self._sampling):
            return likeliest
        return draw(logits, self._sampling, uniforms(self._sampling, self.position, 1)[0][0])

    def guess(self, token: int, confidence: float, end: bool) -> None:
        """Takes the exit's next token; `end`: it ends the answer."""
        sure = self._sure(confidence)
        self.guesses.append(ExitPrediction(token, confidence, sure))  # last: what the event loop counts
        self.done = end or not sure or len(self.guesses) >= self._limit
        if not self.done:
            self.pending = [token]

    @property
    def has_news(self) -> bool:
        return self.done or len(self.guesses) > self._seen

    def part(self) -> list[ExitPrediction]:
        """What it guessed since the last part."""
        begin, self._seen = self._seen, len(self.guesses)
        return self.guesses[begin : self._seen]


class Freed(NamedTuple):
    """A lease ended: every segment is to forget its sequence."""

    sequence: int


class SegmentBatcher(StepScheduler[SegmentJob]):
    """Owns the segments. `temperatures`, one an exit, divide its logits before its confidence is read from them."""

    def __init__(
        self,
        segments: Sequence[LlamaSegment],
        temperatures: Sequence[float],
        end_tokens: frozenset[int],
        inbox: SimpleQueue[SegmentJob | Freed | None],
        wake: Callable[[list[asyncio.Future[None]]], None],
    ) -> None:
        super().__init__(inbox, wake)
        self._segments = segments
        self._temperatures = temperatures
        self._end_tokens = end_tokens
        self._read_last = [False] * len(segments)
        """Whether each segment's last step read on in long jobs."""
        self.steps = [0] * len(segments)
        self.rows = [0] * len(segments)

    def abort(self) -> None:
        for segment in self._segments:
            segment.abort(True)

    def free(self) -> None:
        for segment in self._segments:
            segment.free()

    def _receive(self, message: SegmentJob | Freed) -> None:
        if isinstance(message, Freed):
            for segment in self._segments:
                segment.forget(message.sequence)
        elif not message.cancelled:
            self._active.append(message)

    def _step(self) -> None:
        at, jobs = self._next()
        portions = share_out(jobs, self._few(at))
        in_step = [job for job, _ in portions]
        self._guarded(lambda _: self._decode(at, portions), in_step)
        # Those that go on wait behind those who have waited meanwhile.
        self._active = [job for job in self._active if job not in in_step] + in_step

    def _next(self) -> tuple[int, list[SegmentJob]]:
        """The segment that somebody has waited for longest, and those of its jobs that go into its next step."""
        at = self._active[0].segment
        waiting = [job for job in self._active if job.segment == at]
        ending = [job for job in waiting if len(job.pending) <= self._few(at)]
        reading = [job for job in waiting if len(job.pending) > self._few(at)]
        reads = bool(reading) and not (ending and self._read_last[at])
        self._read_last[at] = reads
        return at, reading if reads else ending

    def _few(self, segment: int) -> int:
        """Inputs that a job may have for its last step."""
        return FEW if self._segments[segment].shows_states else CHUNK

    def _decode(self, at: int, portions: list[tuple[SegmentJob, int]]) -> None:
        """Computes these inputs of these jobs in one call of segment `at`."""
        segment = self._segments[at]
        feeds = [Feed(job.sequence, job.pending[:count], job.rows(count)) for job, count in portions]
        segment.abort(False)
        self._in_step = [job for job, _ in portions]
        self._wake()
        step = None if all(job.cancelled for job in self._in_step) else segment.decode(feeds)
        if step is not None:
            self._take(at, portions, feeds, step)

    def _take(self, at: int, portions: list[tuple[SegmentJob, int]], feeds: list[Feed], step: Step) -> None:
        """Hands each job what the step made of its portion."""
        begin, states, hearing = 0, step.states, list[SegmentJob]()
        for (job, count), feed in zip(portions, feeds, strict=True):
            job.read(count, None if states is None else states[begin : begin + count])
            begin += count
            if feed.rows:
                hearing.append(job)
        self.steps[at] += 1
        self.rows[at] += begin
        if hearing:
            self._guess(hearing, step.logits, self._temperatures[at])

    def _guess(self, jobs: list[SegmentJob], logits: Logits, temperature: float) -> None:
        """Has each job take its exit's token, from its row of `logits`, [B, V]."""
        likeliest = logits.argmax(axis=-1).tolist()
        confidences = (1.0 / Softmax.of(logits * np.float32(1.0 / temperature)).total).tolist()
        for job, row, first, confidence in zip(jobs, logits, likeliest, confidences, strict=True):
            token = job.choose(row, first)
            job.guess(token, confidence, token in self._end_tokens)


def share_out(jobs: Sequence[SegmentJob], few: int) -> list[tuple[SegmentJob, int]]:
    """How many pending inputs of each job go into a step of CHUNK: all of up to `few`, equal shares of room of more.

    What is left of one with more is at least one input, after which its exit can be heard. Who is small and does not
    fit waits for the next step, rather than needing two.
    """
    portions: list[tuple[SegmentJob, int]] = []
    room = CHUNK
    for at, job in enumerate(jobs):
        left = len(job.pending)
        count = left if left <= few else min(left - job.hears_exit, room // (len(jobs) - at))
        if 0 < count <= room:
            portions.append((job, count))
            room -= count
    return portions
