"""A lease on one of llama.cpp's sequences: drafts, streams and scores for the request that owns it."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from common.errors import ContextLengthError, GrammarError
from common.grammar.compiler import GrammarCompiler
from common.types import GREEDY, NEVER, Draft, Sampling, StopRule, TokenLogprob
from edge.engine.jobs import DecodeJob, DraftOptions, Generation, Lease, Scoring


class JobExecutor(Protocol):
    """What a lease needs of the engine."""

    @property
    def context_length(self) -> int: ...
    @property
    def end_tokens(self) -> frozenset[int]: ...
    @property
    def grammars(self) -> GrammarCompiler: ...
    def submit(self, job: DecodeJob) -> None: ...
    def cancel(self, job: DecodeJob) -> None: ...
    def works_on(self, job: DecodeJob) -> bool: ...


class EdgeSequence:
    """One request's lease; used in the event loop, one call at a time.

    The token drawn at a position depends on the tokens before it and on `sampling`, with its seed: not on how an
    answer is cut into drafts, and not on other requests. Only a near-tie may be decided otherwise if the tokens before
    it were decoded in other portions or lie elsewhere in the KV cache. `probs` are those of the model's unmodified
    softmax. All methods raise ContextLengthError if `token_ids` alone do not fit; cancelling a call stops its work
    within one step. Drawing raises GrammarError if `sampling.grammar` cannot be enforced after `token_ids`.
    """

    def __init__(self, executor: JobExecutor, lease: Lease) -> None:
        self._executor = executor
        self._lease = lease

    async def draft(
        self,
        token_ids: Sequence[int],
        limit: int,
        sampling: Sampling = GREEDY,
        top_logprobs: int = 0,
        stop: StopRule = NEVER,
    ) -> Draft:
        """Draws up to `limit` tokens after `token_ids`; fewer at the end of the answer or of the context.

        The draft also ends where `stop` says.
        """
        limit = min(limit, self._room(token_ids))
        if limit <= 0:
            return Draft([], [], [], False, 0.0)
        job = await self._generation(token_ids, DraftOptions(limit, sampling, top_logprobs, stop))
        with self._submitted(job):
            await job.wait(self._executor.works_on)
            return job.part(self._executor.end_tokens)

    async def generate(
        self, token_ids: Sequence[int], limit: int, sampling: Sampling = GREEDY, top_logprobs: int = 0
    ) -> AsyncGenerator[Draft, None]:
        """Like `draft`, as a stream: each part holds the tokens drawn since the part before, at least one."""
        limit = min(limit, self._room(token_ids))
        if limit <= 0:
            return
        job = await self._generation(token_ids, DraftOptions(limit, sampling, top_logprobs, streaming=True))
        with self._submitted(job):
            while True:
                await job.wait(self._executor.works_on)
                part = job.part(self._executor.end_tokens)
                if not part.token_ids:
                    return
                yield part

    async def score(self, token_ids: Sequence[int], top: int = 0) -> list[TokenLogprob | None]:
        """The log probability of each token given those before it, with the `top` likeliest; None for the first."""
        self._room(token_ids)
        if len(token_ids) < 2:
            return [None for _ in token_ids]
        job = Scoring(self._lease, list(token_ids), top)
        with self._submitted(job):
            await job.wait(self._executor.works_on)
        return job.scores

    async def _generation(self, token_ids: Sequence[int], options: DraftOptions) -> Generation:
        if (spec := options.sampling.grammar) is not None:
            options = options._replace(grammar_start=await self._executor.grammars.compile(spec))
        return Generation(self._lease, list(token_ids), options)

    @contextmanager
    def _submitted(self, job: DecodeJob) -> Iterator[None]:
        self._executor.submit(job)
        try:
            yield
        except GrammarError:
            if isinstance(job, Generation) and job.sampling.grammar is not None:
                self._executor.grammars.forget(job.sampling.grammar)
            raise
        finally:
            if not job.done:
                self._executor.cancel(job)

    def _room(self, token_ids: Sequence[int]) -> int:
        """How many more tokens fit the context."""
        room = self._executor.context_length - len(token_ids)
        if room < 0:
            raise ContextLengthError(
                f"{len(token_ids)} tokens do not fit the edge model's context of {self._executor.context_length}"
            )
        return room
