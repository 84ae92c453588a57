"""Streams the cloud's own answer to a chat as token ids: for what the edge cannot write as a prompt, as images."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from common.cloud_client.openai_stream import reported_usage
from common.cloud_client.pool import CloudPool
from common.cloud_client.prompt_scores import PREFIX
from common.decoding.answer import Answer, Chunk
from common.decoding.request import DecodingRequest
from common.errors import EndpointError
from common.grammar.spec import GrammarKind
from common.http.request_context import current_tenant, outgoing_priority
from common.protocol import codec
from common.types import FinishReason, Provenance, Sampling, TokenLogprob

DIRECT = (
    *("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("ignore_eos", "min_tokens"),
)
"""Sampling parameters that have the same name in vLLM's requests."""


class StreamedToken(Struct):
    """A token, named by its id."""

    token: str
    logprob: float


class StreamedScore(StreamedToken):
    top_logprobs: list[StreamedToken] = []


class StreamedScores(Struct):
    content: list[StreamedScore] | None = None


class ChatChoicePart(Struct):
    token_ids: list[int] | None = None
    logprobs: StreamedScores | None = None
    finish_reason: str | None = None


class StreamedChunk(Struct):
    """The part of an event that is read here."""

    choices: list[ChatChoicePart] = []
    usage: Any = None


@dataclass(frozen=True)
class CloudChat:
    """A chat that the cloud writes as a prompt itself; `max_tokens`: None: up to the end of its context."""

    messages: list[dict[str, Any]]
    max_tokens: int | None
    tools: list[dict[str, Any]] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)


class CloudChatAnswer:
    """One answer; `answer` holds what has arrived. There is no answer without the cloud."""

    def __init__(self, chat: CloudChat, request: DecodingRequest, clouds: CloudPool, top_logprobs: int | None) -> None:
        self.answer = Answer(request.plan, list(request.prompt), request.max_tokens)
        self._chat = chat
        self._request = request
        self._clouds = clouds
        self._top = top_logprobs

    async def run(self) -> AsyncGenerator[Chunk, None]:
        """The answer's tokens as they come; raises EndpointError when no cloud can be used, RequestError if it refuses.

        Leaving it ends the answer in the cloud.
        """
        answer, cloud, body = self.answer, self._clouds.pick(self._request.prompt), self._body()
        report = answer.report
        report.cloud_calls, report.bytes_up = 1, len(codec.encode(body))
        try:
            with self._clouds.track_call(cloud):
                async with aclosing(cloud.client.events("/v1/chat/completions", body)) as events:
                    async for event in events:
                        report.bytes_down += len(event)
                        if chunk := self._read(codec.decode(event, StreamedChunk)):
                            yield chunk
            if answer.ended is None:
                raise EndpointError(f"{cloud.url} ended the stream without the answer's end")
        finally:
            answer.close()

    def _read(self, chunk: StreamedChunk) -> Chunk | None:
        answer = self.answer
        if (tokens := reported_usage(chunk.usage).prompt_tokens) is not None:
            answer.prompt_tokens = tokens
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                answer.ended = FinishReason.LENGTH if choice.finish_reason == "length" else FinishReason.STOP
            if choice.token_ids:
                scores = choice.logprobs.content if choice.logprobs else None
                own = None if scores is None else [_score(one, self._top or 0) for one in scores]
                answer.report.cloud_steps += len(choice.token_ids)
                return answer.commit(choice.token_ids, Provenance.CLOUD, own, round=1)
        return None

    def _body(self) -> dict[str, Any]:
        chat, sampling = self._chat, self._request.sampling
        body: dict[str, Any] = {
            "messages": chat.messages,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "return_token_ids": True,
            "skip_special_tokens": False,
            **{name: getattr(sampling, name) for name in DIRECT},
            "top_k": sampling.top_k,
            "chat_template_kwargs": chat.variables,
            "structured_outputs": _structured(sampling),
        }
        if chat.tools:
            body |= {"tools": chat.tools, "tool_choice": "none"}  # the edge reads the calls, as in every mode
        if chat.max_tokens is not None:
            body["max_completion_tokens"] = chat.max_tokens
        if self._top is not None:
            body |= {"logprobs": True, "top_logprobs": self._top, "return_tokens_as_token_ids": True}
        if tenant := current_tenant.get():
            body["cache_salt"] = tenant
        if priority := outgoing_priority():
            body["priority"] = priority
        return {name: value for name, value in body.items() if value is not None}


def _structured(sampling: Sampling) -> dict[str, Any] | None:
    if (spec := sampling.grammar) is None:
        return None
    return {spec.kind.value: json.loads(spec.text) if spec.kind is GrammarKind.CHOICE else spec.text}


def _score(one: StreamedScore, top: int) -> TokenLogprob:
    likely = [(_id(token), token.logprob) for token in one.top_logprobs[:top]]
    return TokenLogprob(_id(one), one.logprob, likely)


def _id(token: StreamedToken) -> int:
    return int(token.token.removeprefix(PREFIX))
