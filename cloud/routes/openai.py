"""The cloud's OpenAI API: thin handlers over vLLM's own serving objects.

vLLM's objects do the work (templates, tools, structured output, checks, streaming); the handlers pass bodies to them,
and responses, streams and errors back.
"""

from contextlib import nullcontext
from typing import Any

from aiohttp import web
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest

from cloud.engine.text_readers import LONG, size
from cloud.routes.admission import Admission
from cloud.routes.bodies import validate
from cloud.routes.serving import Serve, Serving
from cloud.verify.validation import check_ids, check_length
from common.errors import NotFoundError, RequestError
from common.http.messages import BODY_LIMIT, read, reply
from common.protocol.openai_replies import TokenizerNames

MAX_IDS = 100_000
"""Token ids in one body of /detokenize."""
MAX_LONG_TEXTS = 4
"""Long bodies of /tokenize and /detokenize that wait or are worked on, one after the other; more are refused."""


class OpenAIRoutes:
    """The /v1 routes and tokenization of one engine."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._engine = serving.engine
        self._long_texts = Admission(max_requests=MAX_LONG_TEXTS, max_tokens=MAX_LONG_TEXTS * BODY_LIMIT)

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat_completion)
        app.router.add_post("/v1/completions", self.completion)
        for path in ("/v1/embeddings", "/v1/rerank", "/v1/score"):
            app.router.add_post(path, self.refuse_pooling)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/detokenize", self.detokenize)
        app.router.add_get("/tokenizer_info", self.tokenizer_info)

    async def models(self, request: web.Request) -> web.StreamResponse:
        return await self._serving.answer(request, self._engine.serving.openai_serving_models.show_available_models)

    async def chat_completion(self, request: web.Request) -> web.StreamResponse:
        serve = self._engine.serving.openai_serving_chat.create_chat_completion
        return await self._serving.generate(request, ChatCompletionRequest, serve)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        serve = self._engine.serving.openai_serving_completion.create_completion
        return await self._serving.generate(request, CompletionRequest, serve)

    async def refuse_pooling(self, request: web.Request) -> web.StreamResponse:
        """vLLM pools either all of what an engine computes, or nothing: one that verifies drafts gives no vectors."""
        await read(request, dict[str, Any])
        name = self._engine.model_name
        raise NotFoundError(f"{name} generates text here, and gives no embeddings or scores", param="model")

    async def tokenizer_info(self, request: web.Request) -> web.StreamResponse:
        """With this route and the two of texts, lm-eval needs no tokenizer of its own."""
        told = (await self._engine.serving.serving_tokenization.get_tokenizer_info()).model_dump()
        # Nothing else of it: some tokenizers have a longest input of 10**30 tokens, which no client reads.
        return reply(request, {name: told.get(name) for name in TokenizerNames.__struct_fields__})

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        body = await self._serving.read(request)
        check_length(size(body), self._engine.max_model_len, "messages" if body.get("prompt") is None else "prompt")
        serve = self._engine.serving.serving_tokenization.create_tokenize
        return await self._read(request, body, TokenizeRequest, serve)

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        body = await self._serving.read(request)
        if size(body) > MAX_IDS:
            raise RequestError(f"more than {MAX_IDS} token ids", param="tokens")
        check_ids(validate(body, DetokenizeRequest).tokens, self._engine.vocab_size, "tokens")
        serve = self._engine.serving.serving_tokenization.create_detokenize
        return await self._read(request, body, DetokenizeRequest, serve)

    async def _read(self, request: web.Request, body: dict[str, Any], kind: Any, serve: Serve) -> web.StreamResponse:
        """Tokenizes or detokenizes; of long bodies only so many are taken at once, by an admission of their own."""
        amount = size(body)
        with self._long_texts.admit(amount) if amount > LONG else nullcontext():
            return await self._serving.answer(request, serve, validate(body, kind), None)
