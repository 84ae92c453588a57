"""Receives the text of an answer, or of its rest, from a server with OpenAI's API, as tokens."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from common.cloud_client.openai_client import OpenAIClient
from common.decoding.progress import record_work, waiting
from common.errors import EndpointError, RequestError
from common.http.traffic import Traffic
from common.protocol.stream_frames import EndFrame, TokensFrame
from common.types import FinishReason


class StreamedDelta(Struct):
    content: str | None = None


class StreamedChoice(Struct):
    """Of a completion `text`, of a chat `delta`."""

    text: str | None = None
    delta: StreamedDelta | None = None
    finish_reason: str | None = None

    @property
    def piece(self) -> str:
        return self.text or (self.delta.content if self.delta else None) or ""


LARGEST_COUNT = 2**53
"""As far as every reader of JSON counts; sums of a day stay far below what 64 bits hold."""


@dataclass(frozen=True)
class ReportedUsage:
    """A server's own counts of tokens; None: it gives none, or nonsense."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


def reported_usage(usage: object) -> ReportedUsage:
    """What the `usage` of a reply or an event says; nothing in it fails an answer that has arrived."""
    fields = usage if isinstance(usage, dict) else {}
    details = fields.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return ReportedUsage(
        reported_count(fields.get("prompt_tokens")),
        reported_count(fields.get("completion_tokens")),
        reported_count(cached),
    )


def reported_count(value: object) -> int | None:
    """None for what is no count."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    return min(value, LARGEST_COUNT)


class StreamedEvent(Struct):
    """The fields of a stream's event that are read here; `usage` is in the last one."""

    choices: list[StreamedChoice] = []
    usage: Any = None


@dataclass(frozen=True)
class GenerationCall:
    """A call that generates text. `pending`: bytes at the end of the answer so far that are no whole character."""

    path: str
    body: dict[str, Any]
    pending: bytes = b""


@dataclass
class GeneratedStream:
    """Use `async with`, and iterate: each piece of text becomes a frame of tokens; leaving it ends the answer.

    Entering waits for the first event, and raises EndpointError where the server cannot be used. `encode` and `spell`
    translate between the text in the middle of an answer and token ids; the answer ends after `max_tokens` of them.
    """

    client: OpenAIClient
    request: GenerationCall
    position: int
    max_tokens: int
    encode: Callable[[str], list[int]]
    spell: Callable[[int], bytes]
    traffic: Traffic
    end: EndFrame | None = None
    failure: EndpointError | RequestError | None = None
    opened: bool = False
    handshake_seconds: float = 0.0
    usage: ReportedUsage = field(default_factory=ReportedUsage)
    _events: AsyncGenerator[bytes, None] | None = None
    _first: StreamedEvent | None = None

    async def __aenter__(self) -> "GeneratedStream":
        self._events = self.client.events(self.request.path, self.request.body, self.traffic)
        self._first = await self._next()
        self.opened = True
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._events is not None
        await self._events.aclose()

    async def draft(self, position: int, token_ids: Sequence[int]) -> None:
        """Such a server takes no drafts."""

    async def __aiter__(self) -> AsyncIterator[TokensFrame]:
        event, reason, left, drawn = self._first, None, self.max_tokens, 0
        while event is not None:
            self.usage = reported_usage(event.usage) if event.usage else self.usage
            choice = event.choices[0] if event.choices else StreamedChoice()
            if choice.piece and not left:
                reason = "length"  # counted in other tokens, the server's answer is longer
                break
            reason = choice.finish_reason or reason
            if ids := self._tokens(choice.piece)[:left]:
                yield TokensFrame(position=self.position, token_ids=ids)
                self.position, left, drawn = self.position + len(ids), left - len(ids), drawn + 1
            event = await self._next()
        self._finish(reason, drawn)

    def _finish(self, reason: str | None, drawn: int) -> None:
        """Raises EndpointError for an answer that has not ended."""
        if reason is None:
            url = self.client.base_url
            hint = "" if url.endswith("/v1") else f"; should its URL be {url}/v1?"  # llama-server has two APIs
            self.failure = EndpointError(f"{url} ended its answer without a reason{hint}")
            raise self.failure
        self.end = EndFrame(
            finish_reason=FinishReason.LENGTH if reason == "length" else FinishReason.STOP,
            steps=self.usage.completion_tokens or drawn,
            cached_tokens=self.usage.cached_tokens or 0,
        )

    async def _next(self) -> StreamedEvent | None:
        """The next event; None after the last one."""
        assert self._events is not None
        try:
            with waiting("the cloud's next text"):
                data = await anext(self._events, None)
            record_work()
            return None if data is None else msgspec.json.decode(data, type=StreamedEvent)
        except msgspec.DecodeError as error:
            self.failure = EndpointError(f"{self.client.base_url} answers nonsense ({error})")
            raise self.failure from error
        except (EndpointError, RequestError) as error:
            self.failure = error
            raise

    def _tokens(self, text: str) -> list[int]:
        """The ids of `text`; at first without the bytes of a character that the answer so far has already."""
        ids, pending = self.encode(text) if text else [], self.request.pending
        if not (text and pending):
            return ids
        self.request = GenerationCall(self.request.path, self.request.body)
        for begin in range(len(ids)):
            if b"".join(map(self.spell, ids[:begin])) == pending:
                return ids[begin:]
        return ids
