"""The client's side of the whole framework: edge and cloud both over HTTP, one call for an answer. Knows no engine."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from common.cloud_client.pool import CloudPool
from common.cloud_client.verifier import CloudVerifier, EdgeDrafter
from common.config_schema import NO_KEY, BreakerConfig, CommunicationConfig, Config, HttpClientConfig, Secret
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.privacy import is_private
from common.decoding.request import DecodingRequest
from common.decoding.vocab_translation import PaddedDrafter
from common.errors import EndpointError, VocabularyError
from common.http.client import HTTPClient as HTTPClient
from common.protocol import codec
from common.protocol.openai import (
    ChatChunk,
    ChatRequest,
    DetokenizeReply,
    DetokenizeRequest,
    Message,
    TokenizeReply,
    TokenizeRequest,
)
from common.protocol.vocabulary import Relation, VocabularyInfo, compare
from common.types import InferenceResult, Mode, Sampling


class PipelineOptions(TypedDict, total=False):
    """The arguments of `full_inference_pipeline` behind its prompt."""

    max_tokens: int
    temperature: float
    use_draft_verify: bool
    use_confidence_check: bool
    seed: int | None
    plan: Plan | None


class EdgeCloudHTTPClient:
    """Drafts on an edge server and verifies on a cloud server with the pipeline that the edge server runs itself."""

    def __init__(
        self,
        edge_endpoint: str = "http://localhost:8080",
        cloud_endpoint: str = "http://localhost:8081",
        config: HttpClientConfig | None = None,
        edge_api_key: Secret = NO_KEY,
        cloud_api_key: Secret = NO_KEY,
        cloud_endpoints: Sequence[str] = (),
        breaker: BreakerConfig | None = None,
        private_patterns: Sequence[str] = (),
    ) -> None:
        """`private_patterns`: regular expressions; a prompt in which one is found goes to the edge and nowhere else."""
        self._private_patterns = private_patterns
        config, breaker = config or HttpClientConfig(), breaker or BreakerConfig()
        self.edge = HTTPClient(edge_endpoint, config, edge_api_key)
        self._shared: VocabularyInfo | None = None
        """The ids that mean the same to both, once that is known."""
        self.clouds = CloudPool(
            CommunicationConfig(
                cloud_endpoint=cloud_endpoint,
                cloud_endpoints=list(cloud_endpoints),
                cloud_api_key=cloud_api_key,
                http_client=config,
                breaker=breaker,
            )
        )

    @classmethod
    def of(cls, config: Config) -> Self:
        """A client of the servers that a config names, with its keys, deadlines and private patterns."""
        communication = config.communication
        return cls(
            communication.edge_endpoint,
            communication.cloud_endpoint,
            communication.http_client,
            communication.edge_api_key,
            communication.cloud_api_key,
            communication.cloud_endpoints,
            communication.breaker,
            config.inference.private_patterns,
        )

    async def __aenter__(self) -> Self:
        await self.clouds.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.edge.close()
        await self.clouds.__aexit__(kind, error, traceback)

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
        plan = dataclasses.replace(
            plan or Plan(), use_draft_verify=use_draft_verify, use_confidence_check=use_confidence_check
        )
        if is_private(prompt, self._private_patterns):
            plan = dataclasses.replace(plan, mode=Mode.EDGE_ONLY)
        pipeline = Pipeline(
            DecodingRequest(prompt_ids, max_tokens, Sampling(temperature=temperature, seed=seed), plan),
            PaddedDrafter(EdgeDrafter(self.edge), shared.size),
            CloudVerifier(self.clouds, vocabulary=shared.fingerprint),
        )
        answer = [token for chunk in [c async for c in pipeline.run()] for token in chunk.token_ids]
        self.clouds.degraded += pipeline.answer.report.degraded is not None
        text = (await self.edge.post("/detokenize", DetokenizeRequest(tokens=answer), DetokenizeReply)).prompt
        return InferenceResult(
            text=text,
            finish_reason=pipeline.answer.finish_reason,
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(answer),
            total_latency_ms=(time.perf_counter() - started) * 1000,
            collaboration=pipeline.answer.report,
        )

    async def batch_inference(
        self, prompts: Sequence[str], concurrency: int = 8, **options: Unpack[PipelineOptions]
    ) -> list[InferenceResult]:
        """`full_inference_pipeline` for each prompt, up to `concurrency` of them at once; the results in order.

        Raises as it does: the first failure ends them all.
        """
        turns = asyncio.Semaphore(concurrency)

        async def one(prompt: str) -> InferenceResult:
            async with turns:
                return await self.full_inference_pipeline(prompt, **options)

        tasks = [asyncio.create_task(one(prompt)) for prompt in prompts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def get_client_stats(self) -> dict[str, Any]:
        """What was sent, received and waited for: on the edge, and on each cloud with how its calls ended."""
        return {"edge": self.edge.get_client_stats(), "clouds": self.clouds.stats()}

    async def _shared_ids(self) -> VocabularyInfo:
        """Raises VocabularyError where ids would not mean the same; a cloud that is not there has to see for itself."""
        if self._shared is None:
            ours = await self.edge.get("/tokenizer", VocabularyInfo)
            try:
                theirs = await self.clouds.get("/tokenizer", VocabularyInfo)
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
            yield codec.decode(event, ChatChunk)
