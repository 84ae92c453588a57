"""Implements the pipeline's drafter and verifier over HTTP."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from common.cloud_client.pool import CallOutcome, Cloud, CloudPool, outcome_of
from common.cloud_client.stream import CloudStream
from common.decoding.progress import record_work, waiting
from common.errors import ContextLengthError, EndpointError, PrefixUnknown
from common.http.client import HTTPClient
from common.http.request_context import current_tenant, outgoing_priority
from common.http.traffic import Traffic
from common.protocol.prefix_hash import prefix_hash
from common.protocol.stream_frames import StartFrame
from common.tracing.spans import SpanKind, span
from common.types import (
    GREEDY,
    NEVER,
    NO_DRAFT,
    Draft,
    DraftRequest,
    DraftResponse,
    Sampling,
    StopRule,
    Verdict,
    VerifyRequest,
    VerifyResponse,
)


class CloudVerifier:
    """The verifier of one request, over HTTP: keeps the session whose prefix edge and cloud both hold.

    It sends only tokens that the cloud does not hold yet, and names the tenant of the request being served. A cloud
    that lost the prefix, or one that replaces a lost cloud, gets the whole prefix and the `vocabulary` (see
    VerifyRequest). A cloud that failed gets no more calls of this request.
    """

    def __init__(
        self, clouds: CloudPool, use_kv_cache: bool = True, vocabulary: str = "", logprobs: int | None = None
    ) -> None:
        """`logprobs`: how many of the likeliest tokens' log probabilities come with each token; None: none at all."""
        self._clouds = clouds
        self._logprobs = logprobs
        self._use_kv_cache = use_kv_cache
        self._vocabulary = vocabulary
        self._tenant, self._priority = current_tenant.get(), outgoing_priority()
        self._session = uuid.uuid4().hex
        self._rounds = 0
        self._cloud: Cloud | None = None
        self._held = 0
        """Tokens of the prefix that the cloud holds for the session."""
        self._failed: dict[Cloud, EndpointError] = {}
        self.traffic = Traffic()

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        """See `common.decoding.interfaces.Verifier`; raises EndpointError when no usable cloud is left."""
        started = time.perf_counter()
        with span("verify", SpanKind.CLIENT) as traced:
            while True:
                cloud = self._pick(token_ids)
                traced.set(_address(cloud), prefix=len(token_ids), drafted=len(draft))
                try:
                    with self._clouds.track_call(cloud):
                        response = await self._round(cloud, token_ids, draft, sampling, max_tokens)
                    break
                except EndpointError as error:
                    self._failed[cloud] = error
            traced.set(accepted=response.accepted, tokens=len(response.token_ids), form=response.form)
        if cloud.client.config.optimized:
            self._held = len(token_ids) + len(response.token_ids)
        return Verdict(
            token_ids=response.token_ids,
            accepted=response.accepted,
            finish_reason=response.finish_reason,
            logprobs=response.logprobs,
            latency_ms=(time.perf_counter() - started) * 1000,
            cloud_ms=response.latency_ms,
        )

    @asynccontextmanager
    async def stream(
        self,
        token_ids: Sequence[int],
        max_tokens: int,
        sampling: Sampling = GREEDY,
    ) -> AsyncIterator[CloudStream]:
        """An open stream that continues `token_ids` on a cloud; raises EndpointError when no cloud accepts it.

        A stream that is lost later raises while it is read. To continue, open another one with all committed tokens:
        it goes to another cloud, or raises EndpointError.
        """
        start = StartFrame(
            token_ids=list(token_ids),
            max_tokens=max_tokens,
            sampling=sampling,
            logprobs=self._logprobs,
            use_kv_cache=self._use_kv_cache,
            vocabulary=self._vocabulary,
            tenant=self._tenant,
            priority=self._priority,
        )
        while True:
            cloud = self._pick(token_ids)
            with span("stream", SpanKind.CLIENT) as traced:
                traced.set(_address(cloud), prefix=len(token_ids))
                stream = CloudStream(cloud.client, start, self.traffic)
                self._clouds.begin_call(cloud)
                try:
                    async with stream:
                        yield stream
                    return
                except EndpointError as error:
                    if stream.opened:
                        raise
                    traced.fail(type(error).__name__)
                finally:
                    self._end_call(cloud, stream)
                    if end := stream.end:
                        traced.set(steps=end.steps, drafted=end.drafted, accepted=end.accepted, dropped=end.dropped)

    def _end_call(self, cloud: Cloud, stream: CloudStream) -> None:
        """Records the stream's own outcome: its reader may catch its failure, or fail for other reasons."""
        if stream.failure is not None:
            self._clouds.end_call(cloud, outcome_of(stream.failure), stream.failure)
        else:
            self._clouds.end_call(cloud, CallOutcome.OK if stream.end else CallOutcome.CANCELLED)
        if isinstance(stream.failure, EndpointError):
            self._failed[cloud] = stream.failure

    def _pick(self, token_ids: Sequence[int]) -> Cloud:
        """The session's cloud while it is usable, else the best other one."""
        if self._cloud is None or self._cloud in self._failed or not self._cloud.breaker.closed:
            try:
                cloud = self._clouds.pick(token_ids, excluding=self._failed)
            except EndpointError:
                if self._failed:
                    raise list(self._failed.values())[-1] from None
                raise
            self._clouds.failovers += self._cloud is not None
            self._cloud, self._held = cloud, 0
        return self._cloud

    async def _round(
        self, cloud: Cloud, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> VerifyResponse:
        try:
            return await self._ask(cloud, token_ids, draft, sampling, max_tokens)
        except PrefixUnknown:
            self._held = 0
            return await self._ask(cloud, token_ids, draft, sampling, max_tokens)

    async def _ask(
        self, cloud: Cloud, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> VerifyResponse:
        prefix = token_ids[: self._held]
        self._rounds += 1
        request = VerifyRequest(
            session=self._session,
            prefix_length=len(prefix),
            prefix_hash=prefix_hash(prefix),
            new_token_ids=list(token_ids[len(prefix) :]),
            draft_token_ids=list(draft),
            max_tokens=max_tokens,
            sampling=sampling,
            logprobs=self._logprobs,
            use_kv_cache=self._use_kv_cache,
            idempotency_key=str(self._rounds),
            vocabulary="" if prefix else self._vocabulary,
            tenant=self._tenant,
            priority=self._priority,
        )
        first_byte = cloud.client.config.first_byte_timeout
        with waiting("the cloud's verdict"):
            return await cloud.client.post("/verify", request, VerifyResponse, self.traffic, first_byte, record_work)


def _address(cloud: Cloud) -> dict[str, str | int]:
    """As a span names the server that it calls."""
    url = urlsplit(cloud.url)
    return {"server.address": url.hostname or ""} | ({"server.port": url.port} if url.port else {})


class EdgeDrafter:
    """The drafter over HTTP: calls an edge server's POST /draft. A draft is empty where the edge's context is full."""

    def __init__(self, client: HTTPClient) -> None:
        self._client = client

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        started = time.perf_counter()
        request = DraftRequest(prompt_token_ids=list(token_ids), max_tokens=limit, sampling=sampling, stop=stop)
        try:
            response = await self._client.post("/draft", request, DraftResponse)
        except ContextLengthError:
            return NO_DRAFT
        return Draft(
            token_ids=response.draft_token_ids,
            probs=[t.prob for t in response.token_probs],
            confidences=[t.confidence if t.confidence is not None else t.prob for t in response.token_probs],
            finished=response.finished,
            latency_ms=(time.perf_counter() - started) * 1000,
        )
