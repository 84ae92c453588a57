"""POST /v1/messages: runs the converted request as a chat, renders the answer as content blocks, whole or as events."""

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from common.protocol.content.openai_content import without_media
from edge.api import prompts, ways
from edge.api.completions import Completion
from edge.api.context import ServerContext
from edge.api.planned_prompt import with_longest_context
from edge.api.resolve import resolve
from edge.dialects.blocks import BlockAdded, BlockBuilder, BlockOpened, Step
from edge.dialects.collaboration_fields import naming
from edge.dialects.messages_request import NAMES, CountTokensRequest, MessagesRequest
from edge.dialects.responses import encoded
from edge.text.conversation import Conversation
from edge.tool_calls.parts import Part, Thought, ToolCall

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesAnswer:
    """The answer to one request; read it once, by `whole` or by `events`."""

    def __init__(self, completion: Completion) -> None:
        self._completion = completion
        self._blocks = BlockBuilder()
        self._stop: dict[str, str | None] = {}

    async def whole(self) -> dict[str, Any]:
        """The message, when the answer is finished."""
        async with aclosing(self._steps()) as steps:
            async for _ in steps:
                pass
        content = [block_of(part) for part in self._blocks.blocks]
        return self._head() | {"content": content, "usage": self._usage()} | self._stop | self._completion.last()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The message as server-sent events."""
        begun = False
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                if not begun:
                    begun = True
                    yield self._opening()
                for event in events_of(step) if step else []:
                    yield encoded(event)
        delta = {"type": "message_delta", "delta": self._stop, "usage": self._usage()}
        yield encoded(delta | self._completion.last())
        yield encoded({"type": "message_stop"})

    async def _steps(self) -> AsyncGenerator[Step | None, None]:
        """What becomes of the blocks; None for a piece without any."""
        async with aclosing(self._completion.pieces()) as pieces:
            async for piece in pieces:
                for step in self._blocks.take(piece.parts):
                    yield step
                if not piece.parts:
                    yield None
                if piece.finish_reason is not None:
                    reason = "stop_sequence" if piece.stopped_by else STOP_REASONS[piece.finish_reason]
                    self._stop = {"stop_reason": reason, "stop_sequence": piece.stopped_by}
        for step in self._blocks.close():
            yield step

    def _head(self) -> dict[str, Any]:
        head = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": self._completion.model,
        }
        return head | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage()}

    def _opening(self) -> bytes:
        return encoded({"type": "message_start", "message": self._head()})

    def _usage(self) -> dict[str, int]:
        usage = self._completion.usage()
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        counts = {"input_tokens": usage["prompt_tokens"] - cached, "output_tokens": usage["completion_tokens"]}
        return counts | {"cache_read_input_tokens": cached, "cache_creation_input_tokens": 0}


def block_of(part: Part) -> dict[str, Any]:
    """A part of an answer as a content block."""
    if isinstance(part, ToolCall):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": json.loads(part.arguments)}
    if isinstance(part, Thought):
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    return {"type": "text", "text": part.text}


def events_of(step: Step) -> list[dict[str, Any]]:
    """What a step of the blocks is in the stream."""
    if isinstance(step, BlockOpened):
        part = step.part
        empty = part._replace(arguments="{}") if isinstance(part, ToolCall) else type(part)("")
        return [{"type": "content_block_start", "index": step.index, "content_block": block_of(empty)}]
    if isinstance(step, BlockAdded):
        return [{"type": "content_block_delta", "index": step.index, "delta": _delta(step.part)}]
    return [{"type": "content_block_stop", "index": step.index}]


def _delta(part: Part) -> dict[str, Any]:
    if isinstance(part, ToolCall):
        return {"type": "input_json_delta", "partial_json": part.arguments}
    if isinstance(part, Thought):
        return {"type": "thinking_delta", "thinking": part.text}
    return {"type": "text_delta", "text": part.text}


async def answer(body: MessagesRequest, context: ServerContext) -> MessagesAnswer:
    """The answer, not yet begun; raises RequestError that names the wrong field."""
    with naming(NAMES):
        return MessagesAnswer(Completion(await resolve(body.chat(), context), context))


async def count_tokens(body: CountTokensRequest, context: ServerContext) -> dict[str, int]:
    """The tokens of the prompt that the same body makes for POST /v1/messages; an image counts as a word."""
    with naming(NAMES):
        chat = body.chat()
        mode = ways.applied(chat, context).mode or context.config.inference.mode
    messages = [msgspec.structs.replace(one, content=without_media(one.content)) for one in chat.messages]
    conversation = Conversation(messages, chat.toolset.tools, chat.template_variables)
    ids, _ = await with_longest_context(mode, context, lambda model: prompts.of_chat(model, conversation))
    return {"input_tokens": len(ids)}
