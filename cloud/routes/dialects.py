"""The cloud's POST /v1/responses (OpenAI) and /v1/messages (Anthropic): thin handlers over vLLM's own objects."""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from cloud.engine.text_readers import size
from cloud.routes.bodies import validate
from cloud.routes.serving import Serving
from cloud.verify.validation import check_length
from common.grammar.spec import GrammarKind, GrammarSpec
from common.http.messages import ERROR_OBJECT
from common.protocol.content import anthropic_errors


class DialectRoutes:
    """Both APIs of one engine."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/responses", self.responses)
        app.router.add_post("/v1/messages", self.messages)
        app.router.add_post("/v1/messages/count_tokens", self.count_tokens)

    async def responses(self, request: web.Request) -> web.StreamResponse:
        serve = self._serving.engine.serving.openai_serving_responses.create_responses
        return await self._serving.generate(request, ResponsesRequest, serve, cost_of=_as_chat)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        request[ERROR_OBJECT] = anthropic_errors.error_body
        serve = self._serving.engine.serving.anthropic_serving_messages.create_messages
        return await self._serving.generate(request, AnthropicMessagesRequest, serve, grammar_of=_schema_of)

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        request[ERROR_OBJECT] = anthropic_errors.error_body
        body = await self._serving.read(request)
        check_length(size(body), self._serving.engine.max_model_len, "messages")
        serve = self._serving.engine.serving.anthropic_serving_messages.count_tokens
        return await self._serving.answer(request, serve, validate(body, AnthropicCountTokensRequest))


def _as_chat(body: dict[str, Any]) -> Mapping[str, Any]:
    """What decides the cost of a response, under the names of a chat."""
    return {"messages": [body.get("input"), body.get("instructions")], "max_tokens": body.get("max_output_tokens")}


def _schema_of(body: AnthropicMessagesRequest) -> GrammarSpec | None:
    """The schema of the answer, which vLLM turns into one of a chat."""
    wanted = body.output_config.format if body.output_config else None
    schema = wanted.json_schema if wanted else None
    return GrammarSpec(GrammarKind.JSON, json.dumps(schema, ensure_ascii=False)) if schema else None
