"""One answer's lease on a sequence of a split model's segments: reads tokens, draws at exits, catches up."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from common.errors import EngineError
from common.types import Sampling
from edge.llama.batch import States
from edge.llama.sampling import penalties
from edge.split.held import HeldSequence
from edge.split.jobs import ExitPrediction, ExitRequest, SegmentJob


class SegmentExecutor(Protocol):
    """What a lease needs of the segments."""

    @property
    def exits(self) -> list[int]: ...
    @property
    def end_tokens(self) -> frozenset[int]: ...
    def submit(self, job: SegmentJob) -> None: ...
    def cancel(self, job: SegmentJob) -> None: ...
    def works_on(self, job: SegmentJob) -> bool: ...


class SegmentSequence:
    """One answer's lease: its position in every segment, and their output states. Takes one call at a time.

    A segment's *pending* positions are those that the segment before it has computed and it has not yet; one job
    catches them up. `top_logprobs`: how many alternatives each prediction names; 0: no log probabilities.
    """

    def __init__(
        self, segments: SegmentExecutor, sequence: int, held: HeldSequence, sampling: Sampling, top_logprobs: int = 0
    ) -> None:
        self._segments = segments
        self._sequence = sequence
        self._held = held
        self._sampling = sampling
        self._top = top_logprobs
        self.reused = held.held[0]
        """Positions that the first segment had when the lease began."""
        self.waited_ms = 0.0
        """Milliseconds that the answer waited for its segments."""
        self.predictions = 0
        """Tokens that its exits predicted, also those that were not taken."""
        self.failed = False
        """Whether a step failed, after which its segment may hold nothing."""

    @property
    def exits(self) -> list[int]:
        """The number of layers before each segment's exit."""
        return self._segments.exits

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._segments.end_tokens

    @property
    def held(self) -> list[int]:
        """Positions that each segment has computed."""
        return self._held.held

    @property
    def computed(self) -> list[int]:
        """The tokens of the positions that the first segment has computed."""
        return self._held.computed

    @property
    def states(self) -> States:
        """The states after the first segment, [n, H], of all positions computed so far; they no longer change."""
        return self._held.states[0][: self.held[0]]

    def pending(self, segment: int) -> int:
        """Positions that the first segment has computed and `segment` has not."""
        return self.held[0] - self.held[segment]

    def own_pending(self, segment: int) -> int:
        """Those of them that this answer has added."""
        return self.held[0] - max(self.held[segment], self.reused)

    async def draw(
        self, token_ids: list[int], limit: int, confident: Callable[[float], bool]
    ) -> AsyncGenerator[list[ExitPrediction], None]:
        """Reads `token_ids` in the first segment, then yields its exit's predictions in parts.

        Ends after `limit` predictions, or after the first whose confidence `confident` refuses; the tokens before it
        are read too. With `limit` 0 the exit is not computed.
        """
        tokens = self._held.tokens
        tokens += token_ids
        job = self._job(0, token_ids, limit, confident)
        try:
            with self._submitted(job):
                while part := await self._part(job):
                    tokens += [prediction.token_id for prediction in part]
                    yield part
        finally:
            del tokens[self.held[0] :]

    async def catch_up(self, segment: int, confident: Callable[[float], bool]) -> ExitPrediction:
        """Computes the pending positions of all segments up to this one; returns this one's exit's prediction."""
        predictions: list[ExitPrediction] = []
        for at in range(1, segment + 1):
            pending = self._held.states[at - 1][self.held[at] : self.held[at - 1]]
            if not len(pending) and at < segment:
                continue  # its own exit was asked just before, and was not confident
            job = self._job(at, pending, int(at == segment), confident)
            with self._submitted(job):
                predictions = await self._part(job)
        return predictions[0]

    def _job(self, at: int, inputs: list[int] | States, limit: int, confident: Callable[[float], bool]) -> SegmentJob:
        assert len(inputs), "a segment without pending positions has nothing to compute"
        states = self._held.states[at] if at < len(self._held.states) else None
        exit = ExitRequest(limit, self._sampling, confident, self._top, penalties(self._sampling, self._held.tokens))
        whole = self._held.states[at - 1] if at else self._held.tokens
        return SegmentJob(at, self._sequence, self.held[at], inputs, states, exit, whole)

    async def _part(self, job: SegmentJob) -> list[ExitPrediction]:
        """The job's predictions since the last part; empty at its end."""
        began = time.perf_counter()
        try:
            await job.wait(self._segments.works_on)
        except EngineError:
            self.failed = True
            raise
        self.held[job.segment] = job.position
        self.waited_ms += (time.perf_counter() - began) * 1e3
        part = job.part()
        self.predictions += len(part)
        return part

    @contextmanager
    def _submitted(self, job: SegmentJob) -> Iterator[None]:
        self._segments.submit(job)
        try:
            yield
        finally:
            if not job.done:
                self._segments.cancel(job)
