"""The pipeline's drafter and verifier over HTTP. Knows no engine and no policy."""

import time
import uuid
from collections.abc import Sequence

from common.connection import HTTPClient, Traffic
from common.errors import PrefixUnknown
from common.session import prefix_hash
from common.types import Draft, DraftRequest, DraftResponse, Sampling, Verdict, VerifyRequest, VerifyResponse


class CloudVerifier:
    """A verifier over HTTP for one request: keeps the session whose prefix both sides hold.

    Only what the cloud does not know yet travels; a cloud that lost the prefix gets it whole, and `vocabulary` with
    it (see VerifyRequest).
    """

    def __init__(self, client: HTTPClient, use_kv_cache: bool = True, vocabulary: str = "") -> None:
        self._client = client
        self._use_kv_cache = use_kv_cache
        self._vocabulary = vocabulary
        self._session = uuid.uuid4().hex
        self._known = 0
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
        started = time.perf_counter()
        try:
            response = await self._ask(token_ids, draft, sampling, max_tokens)
        except PrefixUnknown:
            self._known = 0
            response = await self._ask(token_ids, draft, sampling, max_tokens)
        if self._client.config.optimized:
            self._known = len(token_ids) + len(response.token_ids)
        return Verdict(
            token_ids=response.token_ids,
            accepted=response.accepted,
            finished=response.finish_reason is not None,
            latency_ms=(time.perf_counter() - started) * 1000,
        )

    async def _ask(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> VerifyResponse:
        known = token_ids[: self._known]
        request = VerifyRequest(
            session=self._session,
            prefix_length=len(known),
            prefix_hash=prefix_hash(known),
            new_token_ids=list(token_ids[len(known) :]),
            draft_token_ids=list(draft),
            max_tokens=max_tokens,
            sampling=sampling,
            use_kv_cache=self._use_kv_cache,
            vocabulary="" if known else self._vocabulary,
        )
        return await self._client.post("/verify", request, VerifyResponse, self._traffic)


class EdgeDrafter:
    """A drafter over HTTP: an edge server's POST /draft."""

    def __init__(self, client: HTTPClient) -> None:
        self._client = client

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling) -> Draft:
        started = time.perf_counter()
        request = DraftRequest(prompt_token_ids=list(token_ids), max_tokens=limit, sampling=sampling)
        response = await self._client.post("/draft", request, DraftResponse)
        return Draft(
            token_ids=response.draft_token_ids,
            probs=[t.prob for t in response.token_probs],
            confidences=[t.confidence if t.confidence is not None else t.prob for t in response.token_probs],
            finished=response.finished,
            latency_ms=(time.perf_counter() - started) * 1000,
        )
