"""Runs the pipeline from a client that reaches both edge and cloud over HTTP."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from msgspec.structs import replace

from common.cloud_client.pool import CloudPool
from common.cloud_client.privacy import PrivatePatterns
from common.cloud_client.verifier import CloudVerifier, EdgeDrafter
from common.config_schema import CommunicationConfig, Config
from common.decoding.drafters.vocab_translation import PaddedDrafter
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.enums import CloudKind
from common.errors import ConfigError, EndpointError, VocabularyError
from common.http.client import HTTPClient as HTTPClient
from common.protocol import codec
from common.protocol.openai import ChatRequest, Message
from common.protocol.openai_responses import ChatChunk
from common.protocol.tokenization import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from common.protocol.vocabulary import Relation, VocabularyInfo, compare
from common.types import InferenceResult, Mode, Sampling


class PipelineOptions(TypedDict, total=False):
    """The keyword arguments of `full_inference_pipeline`."""

    max_tokens: int
    temperature: float
    use_draft_verify: bool
    use_confidence_check: bool
    seed: int | None


class EdgeCloudHTTPClient:
    """Drafts on an edge server and verifies on a cloud server, with the same pipeline as the edge server."""

    def __init__(
        self,
        edge_endpoint: str | None = None,
        cloud_endpoint: str | None = None,
        communication: CommunicationConfig | None = None,
        private_patterns: Sequence[str] = (),
        plan: Plan | None = None,
    ) -> None:
        """The two endpoints override those of `communication`; defaults: http://localhost:8080 and :8081.

        `private_patterns`: regular expressions; a prompt that matches one is answered by the edge alone. `plan`: mode,
        thresholds and draft lengths of every answer.
        """
        config = communication or CommunicationConfig()
        config = replace(
            config,
            edge_endpoint=edge_endpoint or config.edge_endpoint,
            cloud_endpoint=cloud_endpoint or config.cloud_endpoint,
            clouds=[] if cloud_endpoint else config.clouds,
        )
        if config.kind is CloudKind.OPENAI:
            raise ConfigError("communication.clouds: this client verifies drafts: it needs clouds of kind edgecloud")
        self._private = PrivatePatterns(private_patterns)
        self._plan = plan or Plan()
        self.edge = HTTPClient(config.edge_endpoint, config.http_client, config.edge_api_key)
        self._shared: VocabularyInfo | None = None
        """The vocabulary of the ids that mean the same to edge and cloud, once compared."""
        self.clouds = CloudPool(config)

    @classmethod
    def of(cls, config: Config) -> Self:
        """A client of the servers that a config names, with its keys, deadlines and private patterns."""
        return cls(communication=config.communication, private_patterns=config.inference.private_patterns)

    async def __aenter__(self) -> Self:
        await self.clouds.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.edge.close()
        await self._private.close()
        await self.clouds.__aexit__(kind, error, traceback)

    async def full_inference_pipeline(
        self,
        prompt: str,
        max_tokens: int = 128,
        temperature: float = 0.8,
        use_draft_verify: bool = True,
        use_confidence_check: bool = True,
        seed: int | None = None,
    ) -> InferenceResult:
        """Answers `prompt` as one user message in the edge model's chat template.

        `use_draft_verify` (F2) and `use_confidence_check` (F1) override the client's plan. Raises EndpointError when
        the edge cannot be used, VocabularyError when edge and cloud have different vocabularies. Without a usable cloud
        the edge answers alone, and the report's `degraded` says why.
        """
        started = time.perf_counter()
        shared = await self._shared_vocabulary()
        question = TokenizeRequest(messages=[Message(role="user", content=prompt)])
        prompt_ids = (await self.edge.post("/tokenize", question, TokenizeReply)).tokens
        plan = dataclasses.replace(
            self._plan, use_draft_verify=use_draft_verify, use_confidence_check=use_confidence_check
        )
        if await self._private.match(prompt):
            plan = dataclasses.replace(plan, mode=Mode.EDGE_ONLY)
        pipeline = Pipeline(
            DecodingRequest(prompt_ids, max_tokens, Sampling(temperature=temperature, seed=seed), plan),
            PaddedDrafter(EdgeDrafter(self.edge), shared.size),
            CloudVerifier(self.clouds, vocabulary=shared.fingerprint),
        )
        answer = [token for chunk in [c async for c in pipeline.run()] for token in chunk.token_ids]
        self.clouds.degraded_answers += pipeline.answer.report.degraded is not None
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
        """Calls `full_inference_pipeline` for each prompt, at most `concurrency` at once; the results in order.

        The first failure is raised and cancels the others.
        """
        slots = asyncio.Semaphore(concurrency)

        async def answer(prompt: str) -> InferenceResult:
            async with slots:
                return await self.full_inference_pipeline(prompt, **options)

        tasks = [asyncio.create_task(answer(prompt)) for prompt in prompts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def get_client_stats(self) -> dict[str, Any]:
        """Traffic and latency of the edge and of each cloud, with the outcomes of the clouds' calls."""
        return {"edge": self.edge.get_client_stats(), "clouds": self.clouds.stats()}

    async def _shared_vocabulary(self) -> VocabularyInfo:
        """Raises VocabularyError if token ids differ; without a usable cloud the edge's own vocabulary is returned."""
        if self._shared is None:
            ours = await self.edge.get("/tokenizer", VocabularyInfo)
            try:
                theirs = await self.clouds.get("/tokenizer", VocabularyInfo)
            except EndpointError:
                return ours
            if compare(ours, theirs) is Relation.DIFFERENT:
                remedy = "ask the edge server, which translates: POST /v1/chat/completions"
                raise VocabularyError(f"edge and cloud have different vocabularies; {remedy}")
            self._shared = VocabularyInfo(ours.fingerprint, min(ours.size, theirs.size))
        return self._shared

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatChunk]:
        """Streams the edge server's own answer; the last chunk carries the collaboration report.

        Raises EndpointError when the edge cannot be used or fails later, RequestError when it refuses.
        """
        request.stream = True
        async for event in self.edge.events("/v1/chat/completions", request):
            yield codec.decode(event, ChatChunk)
