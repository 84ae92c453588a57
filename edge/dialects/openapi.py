"""What the routes of both dialects take and give, for the edge's OpenAPI document."""

from typing import Any

import msgspec

from common.protocol.openapi import ANY_OBJECT, Operation
from common.types import Collaboration
from edge.dialects.infill_request import InfillRequest
from edge.dialects.messages_request import CountTokensRequest, MessagesRequest
from edge.dialects.responses_request import ResponsesRequest


class ResponsesObject(msgspec.Struct, kw_only=True):
    """Response of POST /v1/responses: the fields that every one has."""

    id: str
    object: str
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class MessagesObject(msgspec.Struct, kw_only=True):
    """Response of POST /v1/messages."""

    id: str
    type: str
    role: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: dict[str, int]


class CountedTokens(msgspec.Struct):
    """Response of POST /v1/messages/count_tokens."""

    input_tokens: int


class InfillObject(msgspec.Struct, kw_only=True):
    """Response of POST /infill: all fields of llama-server that do not repeat the request, or those it names."""

    index: int | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    tokens_predicted: int | msgspec.UnsetType = msgspec.UNSET
    tokens_evaluated: int | msgspec.UnsetType = msgspec.UNSET
    stop: bool | msgspec.UnsetType = msgspec.UNSET
    stop_type: str | msgspec.UnsetType = msgspec.UNSET
    stopping_word: str | msgspec.UnsetType = msgspec.UNSET
    timings: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    collaboration: Collaboration | msgspec.UnsetType = msgspec.UNSET


OPERATIONS = (
    Operation(
        "post",
        "/infill",
        "Fills a gap in a text, as llama-server",
        request=InfillRequest,
        response=InfillObject | list[InfillObject],
        event=InfillObject,
    ),
    Operation(
        "post",
        "/v1/responses",
        "Answers as OpenAI's Responses",
        request=ResponsesRequest,
        response=ResponsesObject,
        event=ANY_OBJECT,
    ),
    Operation(
        "post",
        "/v1/messages",
        "Answers as Anthropic's Messages",
        request=MessagesRequest,
        response=MessagesObject,
        event=ANY_OBJECT,
    ),
    Operation(
        "post",
        "/v1/messages/count_tokens",
        "Counts the tokens of such a prompt",
        request=CountTokensRequest,
        response=CountedTokens,
    ),
)
