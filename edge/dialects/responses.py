"""POST /v1/responses: converts the request, runs it as a chat, renders and keeps the reply."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from common.protocol import codec
from edge.api.completions import Completion
from edge.api.context import ServerContext
from edge.api.resolve import resolve
from edge.dialects.blocks import BlockBuilder
from edge.dialects.collaboration_fields import naming
from edge.dialects.response_store import KeptConversation, ResponseStore
from edge.dialects.responses_reply import ResponsesReply, as_message
from edge.dialects.responses_request import NAMES, ResponsesRequest
from edge.privacy.private_requests import kept_by
from edge.tool_calls.parts import Part


class ResponsesAnswer:
    """The answer to one request; read it once, by `whole` or by `events`."""

    def __init__(
        self, body: ResponsesRequest, completion: Completion, keep: Callable[[str, Sequence[Part]], None]
    ) -> None:
        """`keep` gets the reply's id and its blocks, if it is to be stored."""
        self._body = body
        self._completion = completion
        self._keep = keep
        self._blocks = BlockBuilder()
        self._reply = ResponsesReply(body, completion.model)

    async def whole(self) -> dict[str, Any]:
        """The reply, when the answer is finished."""
        reason = ""
        async with aclosing(self._completion.pieces()) as pieces:
            async for piece in pieces:
                self._blocks.take(piece.parts)
                reason = piece.finish_reason or reason
        return self._finish(reason)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events."""
        reason = ""
        async with aclosing(self._completion.pieces()) as pieces:
            opened = False
            async for piece in pieces:
                for event in [] if opened else self._reply.opening():
                    yield encoded(event)
                opened = True
                for step in self._blocks.take(piece.parts):
                    for event in self._reply.events(step):
                        yield encoded(event)
                reason = piece.finish_reason or reason
        for step in self._blocks.close():
            for event in self._reply.events(step, "incomplete" if reason == "length" else "completed"):
                yield encoded(event)
        yield encoded(self._reply.closing(self._finish(reason)))

    def _finish(self, reason: str) -> dict[str, Any]:
        blocks, completion = self._blocks.blocks, self._completion
        if self._body.store is not False:
            self._keep(self._reply.id, blocks)
        return self._reply.whole(blocks, reason, completion.usage()) | completion.last()


async def answer(body: ResponsesRequest, context: ServerContext, store: ResponseStore, tenant: str) -> ResponsesAnswer:
    """The answer, not yet begun; raises RequestError that names the wrong field."""
    before = store.get(tenant, body.previous_response_id) if body.previous_response_id else KeptConversation([])
    messages, names = body.messages(before.messages), dict(NAMES)
    if before.private:
        body = msgspec.structs.replace(body, private=True)
        names = NAMES | {"private": "previous_response_id"}
    with naming(names):
        chat = body.chat(messages)
        resolved = await resolve(chat, context)
    private = bool(kept_by(chat))

    def keep(id: str, blocks: Sequence[Part]) -> None:
        store.put(tenant, id, KeptConversation([*messages, as_message(blocks)], private))

    return ResponsesAnswer(body, Completion(resolved, context), keep)


def encoded(event: dict[str, Any]) -> bytes:
    """An event as it is sent: its type is also the name that the browser's own reader of events looks at."""
    return f"event: {event['type']}\ndata: ".encode() + codec.encode(event) + b"\n\n"
