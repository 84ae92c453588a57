"""What each route of the cloud takes and gives, for its OpenAPI document; of vLLM's routes, vLLM's models tell it."""

from functools import cache
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from vllm.entrypoints.anthropic import protocol as anthropic
from vllm.entrypoints.openai.chat_completion import protocol as chats
from vllm.entrypoints.openai.completion import protocol as completions
from vllm.entrypoints.openai.responses import protocol as responses
from vllm.entrypoints.serve.engine.protocol import ModelList
from vllm.entrypoints.serve.tokenize import protocol as tokens

from cloud.routes.own_operations import OWN
from common.protocol.openapi import SCHEMA_REF, Operation, Schema


class _Bodies(NamedTuple):
    """vLLM's models of one route."""

    method: str
    path: str
    summary: str
    request: Any
    response: Any
    event: Any = None


OF_VLLM = (
    _Bodies(
        "post",
        "/v1/chat/completions",
        "Answers a chat with the cloud's model",
        chats.ChatCompletionRequest,
        chats.ChatCompletionResponse,
        chats.ChatCompletionStreamResponse,
    ),
    _Bodies(
        "post",
        "/v1/completions",
        "Continues a text with the cloud's model",
        completions.CompletionRequest,
        completions.CompletionResponse,
        completions.CompletionStreamResponse,
    ),
    _Bodies(
        "post",
        "/v1/responses",
        "Answers as OpenAI's Responses",
        responses.ResponsesRequest,
        responses.ResponsesResponse,
        responses.StreamingResponsesResponse,
    ),
    _Bodies(
        "post",
        "/v1/messages",
        "Answers as Anthropic's Messages",
        anthropic.AnthropicMessagesRequest,
        anthropic.AnthropicMessagesResponse,
        anthropic.AnthropicStreamEvent,
    ),
    _Bodies(
        "post",
        "/v1/messages/count_tokens",
        "Counts the tokens of such a prompt",
        anthropic.AnthropicCountTokensRequest,
        anthropic.AnthropicCountTokensResponse,
    ),
    _Bodies("post", "/tokenize", "A text or a chat as token ids", tokens.TokenizeRequest, tokens.TokenizeResponse),
    _Bodies("post", "/detokenize", "Token ids as text", tokens.DetokenizeRequest, tokens.DetokenizeResponse),
    _Bodies("get", "/v1/models", "The model that requests can name", None, ModelList),
)


@cache
def operations() -> tuple[tuple[Operation, ...], dict[str, Schema]]:
    """All routes of the cloud that not every server has, and the schemas that vLLM's bodies refer to."""
    components: dict[str, Schema] = {}

    def schema(body: Any, mode: Any) -> Schema | None:
        if body is None:
            return None
        written: Schema = TypeAdapter(body).json_schema(ref_template=SCHEMA_REF.replace("{name}", "{model}"), mode=mode)
        components.update(written.pop("$defs", {}))
        return written

    theirs = (
        Operation(
            one.method,
            one.path,
            one.summary,
            request=schema(one.request, "validation"),
            response=schema(one.response, "serialization"),
            event=schema(one.event, "serialization"),
        )
        for one in OF_VLLM
    )
    return (*OWN, *theirs), components
