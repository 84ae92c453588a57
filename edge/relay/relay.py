"""Sends a request on as it is to a cloud with OpenAI's API; the response is the cloud's, with a report."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from common.cloud_client.openai_servers import VLLM
from common.cloud_client.openai_stream import reported_usage
from common.cloud_client.pool import Cloud
from common.cloud_client.privacy import has_token_ids, numbers_of, texts_of
from common.decoding.policy import Plan
from common.decoding.progress import record_work, waiting
from common.errors import EndpointError, RequestError, UnsupportedError
from common.http.request_context import current_tenant
from common.http.traffic import Traffic
from common.protocol import codec
from common.protocol.openai import ChatRequest, GenerationRequest
from common.protocol.openai_fields import OWN
from common.protocol.openai_responses import dump
from common.types import Collaboration, Mode, Provenance
from edge.api.context import ServerContext
from edge.api.plans import given, redacts, stays
from edge.privacy.redaction import NO_SECRETS, Secrets, message_parts, still_private, without_secrets
from edge.privacy.restoring import answers_in_json
from edge.relay.restored_events import RestoredEvents, restored_reply
from edge.tenants.token_guess import guessed_tokens

Event = dict[str, Any]
RELAYED = (Mode.COLLABORATIVE, Mode.CLOUD_ONLY, Mode.ROUTE)
"""Modes in which a cloud may answer a whole request."""
WHOLE_SECONDS = 600.0
"""How long an answer that is not streamed may take: such a server gives no sign of work."""


@dataclass(frozen=True)
class Sendable:
    """A request as a cloud may get it, the private words that its answer gets back, and whether that is JSON."""

    raw: Event
    secrets: Secrets
    answers_in_json: bool


async def of_unsupported(
    error: UnsupportedError, path: str, raw: Event, body: GenerationRequest, context: ServerContext
) -> "Relay":
    """The answer of a cloud to a request that the edge refuses with `error`; raises that where none may be asked."""
    if "fields" not in context.config.inference.escalate or (sent := await _sendable(raw, body, context)) is None:
        raise error
    return Relay(path, sent, f"the cloud answers alone: {error.message}", context)


async def of_tools(path: str, raw: Event, body: GenerationRequest, context: ServerContext) -> "Relay | None":
    """The answer of a cloud to a request with tools; None: it is not to give one."""
    if not (isinstance(body, ChatRequest) and body.tools):
        return None
    if body.mode is not Mode.CLOUD_ONLY and "tools" not in context.config.inference.escalate:
        return None
    sent = await _sendable(raw, body, context)
    return None if sent is None else Relay(path, sent, "the cloud answers alone: the request has tools", context)


async def _sendable(raw: Event, body: GenerationRequest, context: ServerContext) -> Sendable | None:
    """None where there is no cloud that takes whole requests, or something forbids to ask it."""
    mode, private = body.mode or context.plan.mode, context.private
    if context.text_clouds is None or stays(body, context) or mode not in RELAYED:
        return None
    sent, secrets = raw, NO_SECRETS
    if private is not None:
        if redacts(body, context):
            sent, secrets = await without_secrets(raw, private, taken=texts_of(raw))
        parts = _beside_settings(sent, body)
        texts = [*texts_of(parts), *numbers_of(parts), *map("".join, message_parts(sent))]
        if has_token_ids(raw.get("prompt")) or await still_private("\n".join(texts), secrets, private):
            return None
    in_json = bool(secrets) and answers_in_json(body)
    return (
        Sendable(sent, secrets, in_json) if context.costs.within_budget(Plan(mode=Mode.CLOUD_ONLY)).asks_cloud else None
    )


def _beside_settings(sent: Event, body: GenerationRequest) -> list[object]:
    """What a request holds, but for numbers that say how it is answered, such as `max_tokens`."""
    names = body.__struct_encode_fields__
    return [value for name, value in sent.items() if not (name in names and isinstance(value, int | float))]


class Relay:
    """One request on its way through; read it once, by `whole` or by `events`. Raises as an HTTP client does."""

    def __init__(self, path: str, sent: Sendable, reason: str, context: ServerContext) -> None:
        self._path = path
        self._raw = sent.raw
        self._sent = sent
        self._context = context
        self._guess = guessed_tokens(sent.raw)
        """The tokens of the prompt, about: how many it has, the cloud says when it has read it."""
        self._traffic = Traffic()
        self._report = Collaboration(mode=Mode.CLOUD_ONLY, mode_because=reason, rounds=1)
        self._began = time.perf_counter()

    async def whole(self) -> Event:
        clouds = self._context.clouds
        cloud = clouds.pick(())
        body = await self._body(cloud)
        self._context.quotas.admit_prompt(self._guess)
        try:
            with clouds.track_call(cloud), waiting("the cloud's answer"):
                reply: Event = await cloud.client.post(self._path, body, dict, self._traffic, seconds=WHOLE_SECONDS)
        except asyncio.CancelledError:
            self._complete(None, cloud)
            raise
        except (EndpointError, RequestError):
            self._context.quotas.settle_prompt(self._guess, 0)
            raise
        self._complete(reply.get("usage"), cloud)
        reply = restored_reply(reply, self._sent.secrets, self._sent.answers_in_json)
        return reply | {"collaboration": dump(self._report)}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The cloud's own events; the last one has the report. Leaving ends the cloud's work."""
        clouds = self._context.clouds
        cloud = clouds.pick(())
        wanted = self._raw.get("stream_options") or {}
        body = await self._body(cloud) | {"stream_options": wanted | {"include_usage": True}}
        self._context.quotas.admit_prompt(self._guess)
        last: Event = {"choices": []}
        seen, refused, words = 0, False, RestoredEvents(self._sent.secrets, self._sent.answers_in_json)
        try:
            with clouds.track_call(cloud):
                async with aclosing(cloud.client.events(self._path, body, self._traffic)) as events:
                    async for data in events:
                        record_work()
                        event = _decoded(data, cloud.url)
                        if event.get("choices"):
                            seen += 1
                            choices = [words.take(choice) | _CLOUDS for choice in event["choices"]]
                            yield _encoded(event | {"choices": choices})
                        else:
                            last = event
        except (EndpointError, RequestError):
            refused = not seen
            raise
        finally:
            if refused:
                self._context.quotas.settle_prompt(self._guess, 0)
            else:
                self._complete(last.get("usage"), cloud, seen)
        if not wanted.get("include_usage"):
            last.pop("usage", None)
        yield _encoded(last | {"collaboration": dump(self._report)})
        yield b"data: [DONE]\n\n"

    async def _body(self, cloud: Cloud) -> Event:
        assert self._context.text_clouds is not None
        info = await self._context.text_clouds.server(cloud)
        body = {name: value for name, value in self._raw.items() if name not in OWN} | {"model": info.model}
        if (tenant := current_tenant.get()) and info.owner == VLLM:
            body["cache_salt"] = tenant
        return body

    def _complete(self, usage: object, cloud: Cloud, events: int = 0) -> None:
        """Counts the answer; without the cloud's `usage`, as after a client that left, by a guess."""
        counts, report = reported_usage(usage), self._report
        written = given(counts.completion_tokens, events)  # most often an event is a token
        read = given(counts.prompt_tokens, self._guess if self._traffic.calls else 0)
        report.tokens[Provenance.CLOUD] = report.cloud_steps = written
        report.cached_tokens = counts.cached_tokens or 0
        report.cloud_calls, report.bytes_up = self._traffic.calls, self._traffic.bytes_up
        report.bytes_down = self._traffic.bytes_down
        report.cloud_latency_ms = (time.perf_counter() - self._began) * 1e3
        self._context.record_answer(report, read, cloud)
        self._context.quotas.settle_prompt(self._guess, read)


_CLOUDS = {"provenance": Provenance.CLOUD}


def _decoded(data: bytes, url: str) -> Event:
    try:
        event: Event = msgspec.json.decode(data, type=dict)
    except msgspec.DecodeError as error:
        raise EndpointError(f"{url} answers nonsense ({error})") from error
    return event


def _encoded(event: Event) -> bytes:
    return b"data: " + codec.encode(event) + b"\n\n"
