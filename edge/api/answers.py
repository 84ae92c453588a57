"""Starts one answer where its plan says: on the edge alone, with the cloud, or on a split model."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple, Protocol

from common.cloud_client.verifier import CloudVerifier
from common.decoding.answer import Answer, Chunk
from common.decoding.pipeline import Pipeline
from common.decoding.request import DecodingRequest
from common.types import Mode, Provenance
from edge.api.context import ServerContext
from edge.api.resolve import ResolvedAnswer, ResolvedRequest
from edge.engine.engine import EdgeSequence
from edge.engine.lazy_sequence import LazySequence


class RunningAnswer(Protocol):
    """`run` yields the answer's chunks once; `answer` holds what is committed, and the report."""

    answer: Answer

    def run(self) -> AsyncGenerator[Chunk, None]: ...


class StartedAnswer(NamedTuple):
    """An answer, and the sequence that is leased for all of it (None: it has no part in it, or only with a draft)."""

    running: RunningAnswer
    sequence: EdgeSequence | None


@asynccontextmanager
async def start(
    resolved: ResolvedAnswer, request: ResolvedRequest, context: ServerContext
) -> AsyncIterator[StartedAnswer]:
    """The answer; leaving frees what it leased.

    One that the edge computes waits here for a free sequence, one with the cloud when it drafts.
    """
    plan, decoding = resolved.decoding.plan, resolved.decoding
    if plan.mode is Mode.SPLIT:
        async with context.split_engine.answer(decoding) as split:
            yield StartedAnswer(split, None)
        return
    if plan.asks_cloud:
        async with LazySequence(context.engine, request.reuse_kv) as lazy:
            yield StartedAnswer(_with_cloud(resolved, request.reuse_kv, context, lazy), None)
        return
    async with context.engine.sequence(resolved.prompt.edge_ids, reuse=request.reuse_kv) as sequence:
        yield StartedAnswer(EdgeOnlyAnswer(decoding, sequence, request.top_logprobs), sequence)


def _with_cloud(resolved: ResolvedAnswer, reuse_kv: bool, context: ServerContext, sequence: LazySequence) -> Pipeline:
    prompt, plan = resolved.prompt, resolved.decoding.plan
    cloud = CloudVerifier(context.clouds, use_kv_cache=reuse_kv, vocabulary=prompt.vocabulary)
    online = context.online if plan.gated and plan.gate == context.plan.gate else None
    drafter, verifier = prompt.drafter(sequence), prompt.verifier(cloud)
    return Pipeline(resolved.decoding, drafter, verifier, context.estimates, online)


class EdgeOnlyAnswer:
    """The edge's own answer, without rounds: the engine draws on by itself and yields what it has drawn."""

    def __init__(self, request: DecodingRequest, sequence: EdgeSequence, top_logprobs: int | None) -> None:
        self.answer = Answer(request.plan, list(request.prompt), request.max_tokens)
        self._request = request
        self._sequence = sequence
        self._top = 0 if top_logprobs is None else max(1, top_logprobs)  # for the engine 0 means none

    async def run(self) -> AsyncGenerator[Chunk, None]:
        answer, request = self.answer, self._request
        drafts = self._sequence.generate(request.prompt, request.max_tokens, request.sampling, self._top)
        try:
            async with aclosing(drafts):
                async for draft in drafts:
                    answer.record_draft(draft)
                    answer.end_if(draft.finished)
                    yield answer.commit(draft.token_ids, Provenance.EDGE, draft.logprobs, draft.confidences)
        finally:
            answer.close()
