"""The client's side of the whole framework: edge and cloud both over HTTP, one call for an answer. Knows no engine."""

import dataclasses
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from common import wire
from common.api import (
    ChatChunk,
    ChatRequest,
    DetokenizeReply,
    DetokenizeRequest,
    Message,
    TokenizeReply,
    TokenizeRequest,
)
from common.config import NO_KEY, HttpClientConfig, Secret
from common.connection import HTTPClient as HTTPClient
from common.errors import EndpointError, VocabularyError
from common.pipeline import Pipeline
from common.policy import Plan
from common.remote import CloudVerifier, EdgeDrafter
from common.translation import PaddedDrafter
from common.types import InferenceResult, Sampling
from common.vocab import Relation, VocabularyInfo, compare


class EdgeCloudHTTPClient:
    """Drafts on an edge server and verifies on a cloud server with the pipeline that the edge server runs itself."""

    def __init__(
        self,
        edge_endpoint: str = "http://localhost:8080",
        cloud_endpoint: str = "http://localhost:8081",
        config: HttpClientConfig | None = None,
        edge_api_key: Secret = NO_KEY,
        cloud_api_key: Secret = NO_KEY,
    ) -> None:
        self.edge = HTTPClient(edge_endpoint, config, edge_api_key)
        self.cloud = HTTPClient(cloud_endpoint, config, cloud_api_key)
        self._shared: VocabularyInfo | None = None
        """The ids that mean the same to both, once that is known."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.edge.close()
        await self.cloud.close()

    async def full_inference_pipeline(
        self,
        prompt: str,
        max_tokens: int = 128,
        temperature: float = 0.8,
        use_draft_verify: bool = True,
        use_confidence_check: bool = True,
        seed: int | None = None,
        plan: Plan | None = None,
    ) -> InferenceResult:
        """Answers `prompt`, asked as one user turn in the edge model's chat form.

        `plan` gives mode, thresholds and lengths; the two toggles (F2, F1) are laid over it. Raises EndpointError when
        the edge cannot be used, VocabularyError when the two have different vocabularies; without the cloud the answer
        is the edge's and its report says so.
        """
        started = time.perf_counter()
        shared = await self._shared_ids()
        question = TokenizeRequest(messages=[Message(role="user", content=prompt)])
        prompt_ids = (await self.edge.post("/tokenize", question, TokenizeReply)).tokens
        pipeline = Pipeline(
            prompt_ids,
            max_tokens,
            Sampling(temperature=temperature, seed=seed),
            dataclasses.replace(
                plan or Plan(), use_draft_verify=use_draft_verify, use_confidence_check=use_confidence_check
            ),
            PaddedDrafter(EdgeDrafter(self.edge), shared.size),
            CloudVerifier(self.cloud, vocabulary=shared.fingerprint),
        )
        answer = [token for chunk in [c async for c in pipeline.run()] for token in chunk.token_ids]
        text = (await self.edge.post("/detokenize", DetokenizeRequest(tokens=answer), DetokenizeReply)).prompt
        return InferenceResult(
            text=text,
            finish_reason=pipeline.answer.finish_reason,
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(answer),
            total_latency_ms=(time.perf_counter() - started) * 1000,
            collaboration=pipeline.answer.report,
        )

    async def _shared_ids(self) -> VocabularyInfo:
        """Raises VocabularyError where ids would not mean the same; a cloud that is not there has to see for itself."""
        if self._shared is None:
            ours = await self.edge.get("/tokenizer", VocabularyInfo)
            try:
                theirs = await self.cloud.get("/tokenizer", VocabularyInfo)
            except EndpointError:
                return ours
            if compare(ours, theirs) is Relation.DIFFERENT:
                how = "ask the edge server, which translates: POST /v1/chat/completions"
                raise VocabularyError(f"edge and cloud have different vocabularies; {how}")
            self._shared = VocabularyInfo(ours.fingerprint, min(ours.size, theirs.size))
        return self._shared

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        """The chunks of the edge server's own answer, as they come; the last one carries the collaboration report.

        Raises EndpointError when the edge cannot be used or fails on the way, RequestError when it refuses.
        """
        request.stream = True
        async for event in self.edge.events("/v1/chat/completions", request):
            yield wire.decode(event, ChatChunk)
