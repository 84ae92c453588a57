"""The pipeline's drafter and verifier over HTTP. Knows no engine and no policy."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from common.cloud_client.pool import CallOutcome, Cloud, CloudPool, outcome_of
from common.cloud_client.stream import CloudStream
from common.errors import EndpointError, PrefixUnknown
from common.http.client import HTTPClient, Traffic
from common.protocol.prefix_hash import prefix_hash
from common.types import GREEDY, Draft, DraftRequest, DraftResponse, Sampling, Verdict, VerifyRequest, VerifyResponse


class CloudVerifier:
    """A verifier over HTTP for one request: keeps the session whose prefix both sides hold.

    Only what the cloud does not know yet travels; a cloud that lost the prefix gets it whole, and so does another one
    that goes on where the first was lost, and `vocabulary` with it (see VerifyRequest). A cloud that failed this
    request is not asked by it again.
    """

    def __init__(self, clouds: CloudPool, use_kv_cache: bool = True, vocabulary: str = "") -> None:
        self._clouds = clouds
        self._use_kv_cache = use_kv_cache
        self._vocabulary = vocabulary
        self._session = uuid.uuid4().hex
        self._rounds = 0
        self._cloud: Cloud | None = None
        self._known = 0
        self._failed: dict[Cloud, EndpointError] = {}
        self._traffic = Traffic()

    @property
    def calls(self) -> int:
        return self._traffic.calls

    @property
    def bytes_up(self) -> int:
        return self._traffic.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._traffic.bytes_down

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        """As the pipeline's Protocol says; EndpointError when no cloud is left that could be asked."""
        started = time.perf_counter()
        while True:
            cloud = self._pick(token_ids)
            try:
                with self._clouds.asking(cloud):
                    response = await self._round(cloud, token_ids, draft, sampling, max_tokens)
                break
            except EndpointError as error:
                self._failed[cloud] = error
        if cloud.client.config.optimized:
            self._known = len(token_ids) + len(response.token_ids)
        return Verdict(
            token_ids=response.token_ids,
            accepted=response.accepted,
            finished=response.finish_reason is not None,
            latency_ms=(time.perf_counter() - started) * 1000,
            cloud_ms=response.latency_ms,
        )

    @asynccontextmanager
    async def stream(
        self,
        token_ids: Sequence[int],
        max_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        logprobs: int | None = None,
    ) -> AsyncIterator[CloudStream]:
        """A stream that continues `token_ids`, open, on a cloud that takes it; raises EndpointError when none does.

        One that is lost later raises while it is read. Whoever then has more to ask opens another with all that is
        committed: it is on another cloud, or EndpointError says that there is none.
        """
        while True:
            cloud = self._pick(token_ids)
            stream = CloudStream(
                cloud.client,
                token_ids,
                max_tokens,
                sampling,
                stop,
                stop_token_ids,
                logprobs,
                self._use_kv_cache,
                self._vocabulary,
                self._traffic,
            )
            self._clouds.began(cloud)
            try:
                async with stream:
                    yield stream
                return
            except EndpointError:
                if stream.opened:
                    raise
            finally:
                self._ended(cloud, stream)

    def _ended(self, cloud: Cloud, stream: CloudStream) -> None:
        """By what the stream says of itself: who reads it may catch its failure, or fail for reasons of their own."""
        if stream.failure is not None:
            self._clouds.ended(cloud, outcome_of(stream.failure), stream.failure.message)
        else:
            self._clouds.ended(cloud, CallOutcome.OK if stream.end else CallOutcome.CANCELLED)
        if isinstance(stream.failure, EndpointError):
            self._failed[cloud] = stream.failure

    def _pick(self, token_ids: Sequence[int]) -> Cloud:
        """The session's cloud while it can be asked, else the best other one."""
        if self._cloud is None or self._cloud in self._failed or not self._cloud.breaker.closed:
            try:
                cloud = self._clouds.pick(token_ids, excluding=self._failed)
            except EndpointError:
                if self._failed:
                    raise list(self._failed.values())[-1] from None
                raise
            self._clouds.failovers += self._cloud is not None
            self._cloud, self._known = cloud, 0
        return self._cloud

    async def _round(
        self, cloud: Cloud, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> VerifyResponse:
        try:
            return await self._ask(cloud, token_ids, draft, sampling, max_tokens)
        except PrefixUnknown:
            self._known = 0
            return await self._ask(cloud, token_ids, draft, sampling, max_tokens)

    async def _ask(
        self, cloud: Cloud, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> VerifyResponse:
        known = token_ids[: self._known]
        self._rounds += 1
        request = VerifyRequest(
            session=self._session,
            prefix_length=len(known),
            prefix_hash=prefix_hash(known),
            new_token_ids=list(token_ids[len(known) :]),
            draft_token_ids=list(draft),
            max_tokens=max_tokens,
            sampling=sampling,
            use_kv_cache=self._use_kv_cache,
            idempotency_key=str(self._rounds),
            vocabulary="" if known else self._vocabulary,
        )
        first_byte = cloud.client.config.first_byte_timeout
        return await cloud.client.post("/verify", request, VerifyResponse, self._traffic, first_byte)


class EdgeDrafter:
    """A drafter over HTTP: an edge server's POST /draft."""

    def __init__(self, client: HTTPClient) -> None:
        self._client = client

    async def draft(
        self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop_below: float = 0.0
    ) -> Draft:
        started = time.perf_counter()
        request = DraftRequest(
            prompt_token_ids=list(token_ids), max_tokens=limit, sampling=sampling, stop_below=stop_below
        )
        response = await self._client.post("/draft", request, DraftResponse)
        return Draft(
            token_ids=response.draft_token_ids,
            probs=[t.prob for t in response.token_probs],
            confidences=[t.confidence if t.confidence is not None else t.prob for t in response.token_probs],
            finished=response.finished,
            latency_ms=(time.perf_counter() - started) * 1000,
        )
