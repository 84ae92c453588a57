"""Starts one answer where its plan says: on the edge alone, with the cloud, or on a split model."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple, Protocol

from common.cloud_client.chat_stream import CloudChatAnswer
from common.cloud_client.verifier import CloudVerifier
from common.decoding.answer import Answer, Chunk
from common.decoding.interfaces import LeasedDrafter
from common.decoding.pipeline import Pipeline
from common.decoding.request import DecodingRequest
from common.errors import EndpointError
from common.lookup.lookup import Lookup
from common.types import Mode, Provenance
from edge.api.context import ServerContext
from edge.api.resolve import ResolvedAnswer, ResolvedRequest
from edge.engine.sequence import EdgeSequence


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
    """The answer, which its response has admitted; leaving frees what it leased.

    One that the edge computes waits here for a free sequence, one with the cloud when it drafts.
    """
    plan, decoding = resolved.decoding.plan, resolved.decoding
    if request.cloud_chat is not None:
        if resolved.prompt.unknown_because:
            raise EndpointError(resolved.prompt.unknown_because)
        yield StartedAnswer(CloudChatAnswer(request.cloud_chat, decoding, context.clouds, request.top_logprobs), None)
        return
    if plan.mode is Mode.SPLIT:
        answer = context.split_engine.answer(decoding, request.reuse_kv, True, request.edge_logprobs)
        async with answer as split:
            yield StartedAnswer(split, None)
        return
    if plan.asks_cloud:
        lease = context.engine.drafter(request.reuse_kv, plan.uses_edge, request.edge_logprobs)
        async with lease as drafter:
            yield StartedAnswer(_with_cloud(resolved, request, context, drafter), None)
        return
    async with context.engine.sequence(resolved.prompt.edge_ids, request.reuse_kv, admitted=True) as sequence:
        yield StartedAnswer(EdgeOnlyAnswer(decoding, sequence, request.edge_logprobs), sequence)


def _with_cloud(
    resolved: ResolvedAnswer, request: ResolvedRequest, context: ServerContext, edge: LeasedDrafter
) -> Pipeline:
    prompt, plan = resolved.prompt, resolved.decoding.plan
    cloud = CloudVerifier(context.clouds, request.reuse_kv, prompt.vocabulary, request.top_logprobs)
    adapts = plan.gated and plan.gate == context.plan.gate and plan.reasoning_gate is None
    online = context.online if adapts else None
    drafter, verifier = prompt.drafter(edge), prompt.verifier(cloud)
    lookup = _lookup(resolved, context) if resolved.lookup else None
    return Pipeline(resolved.decoding, drafter, verifier, context.estimates, online, lookup, edge.release)


def _lookup(resolved: ResolvedAnswer, context: ServerContext) -> Lookup:
    """What one answer looks up; an answer that a seed is to repeat learns from no other."""
    sampling, prompt = resolved.decoding.sampling, resolved.prompt
    seeded = sampling.temperature > 0 and sampling.seed is not None
    rate = None if seeded else context.match_rate
    return Lookup(len(prompt.ids), resolved.prediction, prompt.end_tokens, rate)


class EdgeOnlyAnswer:
    """The edge's own answer, without rounds: the engine draws on by itself and yields what it has drawn."""

    def __init__(self, request: DecodingRequest, sequence: EdgeSequence, top_logprobs: int) -> None:
        self.answer = Answer(request.plan, list(request.prompt), request.max_tokens)
        self._request = request
        self._sequence = sequence
        self._top = top_logprobs

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
