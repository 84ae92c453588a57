"""A lease on one of llama.cpp's sequences: drafts, streams and scores for its owner. Knows no thread and no batch."""

from collections import abc
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Protocol

from common.errors import ContextLengthError
from common.types import GREEDY, Draft, Sampling, TokenLogprob
from edge.engine.jobs import Generation, Job, Scoring


class Worker(Protocol):
    """Who does the jobs of all sequences."""

    @property
    def context_length(self) -> int: ...
    @property
    def end_tokens(self) -> frozenset[int]: ...
    def submit(self, job: Job) -> None: ...
    def cancel(self, job: Job) -> None: ...


class Sequence:
    """One owner's lease; it asks for one thing at a time, and may do something else meanwhile.

    What a position draws depends on the tokens before it and on `sampling`, seed included, not on how an answer is
    cut into drafts nor on what else the engine does; only a near-tie may fall otherwise when what precedes it was
    decoded in other portions or lies elsewhere in the cache. `probs` are those of the model's unmodified softmax.
    Everything raises ContextLengthError if `token_ids` alone do not fit; leaving early stops the work within a step.
    """

    def __init__(self, worker: Worker, sequence: int, reuse: bool) -> None:
        self._worker = worker
        self._sequence = sequence
        self._reuse = reuse

    async def draft(
        self,
        token_ids: abc.Sequence[int],
        limit: int,
        sampling: Sampling = GREEDY,
        top_logprobs: int = 0,
        stop_below: float = 0.0,
    ) -> Draft:
        """Draws up to `limit` tokens after `token_ids`; fewer at the end of the answer or of the context.

        The draft also ends with a token that brings the product of its confidences below `stop_below`, in [0, 1].
        """
        limit = min(limit, self._room(token_ids))
        if limit <= 0:
            return Draft([], [], [], False, 0.0)
        job = Generation(
            self._sequence, list(token_ids), self._reuse, limit, sampling, top_logprobs, stop_below=stop_below
        )
        with self._submitted(job):
            await job.news()
            return job.part(self._worker.end_tokens)

    async def generate(
        self, token_ids: abc.Sequence[int], limit: int, sampling: Sampling = GREEDY, top_logprobs: int = 0
    ) -> AsyncGenerator[Draft, None]:
        """As `draft`, in parts: what was drawn since the last one, or what is drawn next if that is nothing."""
        limit = min(limit, self._room(token_ids))
        if limit <= 0:
            return
        job = Generation(self._sequence, list(token_ids), self._reuse, limit, sampling, top_logprobs, streaming=True)
        with self._submitted(job):
            while True:
                await job.news()
                part = job.part(self._worker.end_tokens)
                if not part.token_ids:
                    return
                yield part

    async def score(self, token_ids: abc.Sequence[int], top: int = 0) -> list[TokenLogprob | None]:
        """What the model says of each token after those before it, and of the `top` likeliest; None for the first."""
        self._room(token_ids)
        if len(token_ids) < 2:
            return [None for _ in token_ids]
        job = Scoring(self._sequence, list(token_ids), self._reuse, top)
        with self._submitted(job):
            await job.news()
        return job.scores

    @contextmanager
    def _submitted(self, job: Job) -> Iterator[None]:
        self._worker.submit(job)
        try:
            yield
        finally:
            if not job.done:
                self._worker.cancel(job)

    def _room(self, token_ids: abc.Sequence[int]) -> int:
        """How many more tokens fit."""
        room = self._worker.context_length - len(token_ids)
        if room < 0:
            raise ContextLengthError(
                f"{len(token_ids)} tokens do not fit the edge model's context of {self._worker.context_length}"
            )
        return room
