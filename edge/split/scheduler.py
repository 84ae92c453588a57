"""Continuous batching for the segments of a split model, in one thread: each step serves all jobs of one segment.

Jobs join and leave between steps. A segment's step either completes short jobs and computes the exit, or reads a part
of long inputs without the exit's norm and head. The two alternate, so that no job waits for a long prompt.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from common.errors import EngineError
from common.types import Sampling, TokenLogprob
from edge.confidence import Softmax
from edge.engine.jobs import EngineJob
from edge.engine.worker import StepScheduler
from edge.llama.sampling import Logits, draw, is_greedy, log_probabilities, uniforms
from edge.llama.segment import CHUNK, Feed, LlamaSegment, States, Step
from edge.split.held import Begun

LAST_STEP_INPUTS = 32
"""The most inputs of a job's last step. The exit is computed after each: cheaper than one more step for the last."""


class ExitPrediction(NamedTuple):
    """An exit's next token, and the probability of its likeliest token, in [0, 1].

    `confident`: that probability reaches the threshold, so the token is taken. `logprob`: under the softmax of the
    exit's own logits, if requested.
    """

    token_id: int
    confidence: float
    confident: bool
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class ExitRequest:
    """What a job wants of its segment's exit: up to `limit` next tokens, drawn by `sampling`; none if it is 0.

    `confident` tells in the segments' thread whether a token of this confidence is taken. `top_logprobs`: how many
    alternatives each prediction names; 0: no log probabilities.
    """

    limit: int
    sampling: Sampling
    confident: Callable[[float], bool]
    top_logprobs: int = 0


class SegmentJob(EngineJob):
    """Inputs for one sequence of one segment, then the next tokens that its exit predicts.

    After a confident token the first segment goes on by itself, up to the request's limit; later segments predict one.
    """

    def __init__(
        self,
        segment: int,
        sequence: int,
        position: int,
        inputs: list[int] | States,
        states: States | None,
        exit: ExitRequest,
    ) -> None:
        """`position`: of the first input; `states`, [>= positions, H], receives the segment's output for each."""
        super().__init__()
        self.segment = segment
        self.sequence = sequence
        self.position = position
        self.pending = inputs
        self.predictions: list[ExitPrediction] = []
        self._states = states
        self._exit = exit
        self._seen = 0

    @property
    def wants_exit(self) -> bool:
        return self._exit.limit > 0

    def rows(self, count: int) -> int:
        """For how many of the last of `count` pending inputs the exit is computed."""
        return int(self.wants_exit and count == len(self.pending))

    def read(self, count: int, states: States | None) -> None:
        """Records that its next `count` inputs were computed; `states`, [count, H], is the output."""
        if self._states is not None and states is not None:
            self._states[self.position : self.position + count] = states
        self.position += count
        self.pending = self.pending[count:]
        self.done = not len(self.pending) and not self.wants_exit

    def choose(self, logits: Logits, likeliest: int) -> int:
        """The next token, from the exit's logits, [V]; `likeliest` is their argmax."""
        sampling = self._exit.sampling
        if is_greedy(sampling):
            return likeliest
        return draw(logits, sampling, uniforms(sampling, self.position, 1)[0])

    def predict(self, token: int, confidence: float, logits: Logits, end: bool) -> None:
        """Takes the exit's next token, drawn from its `logits`, [V]; `end`: it ends the answer."""
        confident, top = self._exit.confident(confidence), self._exit.top_logprobs
        logprob = log_probabilities(logits[np.newaxis], [token], top)[0] if top else None
        self.predictions.append(ExitPrediction(token, confidence, confident, logprob))  # now the event loop sees it
        self.done = end or not confident or len(self.predictions) >= self._exit.limit
        if not self.done:
            self.pending = [token]

    @property
    def has_news(self) -> bool:
        return self.done or len(self.predictions) > self._seen

    def part(self) -> list[ExitPrediction]:
        """Its predictions since the last part."""
        begin, self._seen = self._seen, len(self.predictions)
        return self.predictions[begin : self._seen]


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
        inbox: SimpleQueue[SegmentJob | Begun | Freed | None],
        wake: Callable[[list[asyncio.Future[None]]], None],
    ) -> None:
        super().__init__(inbox, wake)
        self._segments = segments
        self._temperatures = temperatures
        self._end_tokens = end_tokens
        self._read_last = [False] * len(segments)
        """Whether each segment's last step read a part of long jobs."""
        self.steps = [0] * len(segments)
        self.rows = [0] * len(segments)

    def abort(self) -> None:
        for segment in self._segments:
            segment.abort(True)

    def free(self) -> None:
        for segment in self._segments:
            segment.free()

    def _receive(self, message: SegmentJob | Begun | Freed) -> None:
        if isinstance(message, Freed):
            for segment in self._segments:
                segment.forget(message.sequence)
        elif isinstance(message, Begun):
            self._begin(message)
        elif not message.cancelled:
            self._active.append(message)
            self._guarded(self._check_position, [message])
            self._collect_waiters()

    def _begin(self, begun: Begun) -> None:
        for segment, length in zip(self._segments, begun.lengths, strict=True):
            segment.restore(begun.sequence, begun.source, length)
        for to, of, count in begun.rows:
            to[:count] = of[:count]

    def _check_position(self, jobs: list[SegmentJob]) -> None:
        """Raises EngineError if the KV is not what the lease was told: its source failed in a step just before."""
        for job in jobs:
            if self._segments[job.segment].held[job.sequence] != job.position:
                raise EngineError("the KV of an earlier answer was lost")

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
        """Gives each job the exit's token from its row of `logits`, [B, V]."""
        likeliest = logits.argmax(axis=-1).tolist()
        confidences = (1.0 / Softmax.of(logits * np.float32(1.0 / temperature)).total).tolist()
        for job, row, first, confidence in zip(jobs, logits, likeliest, confidences, strict=True):
            token = job.choose(row, first)
            job.predict(token, confidence, row, token in self._end_tokens)


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
