"""Renders an answer's blocks as the output items of a Responses reply, and as the events of its stream."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.protocol.openai import Message
from common.protocol.openai_tools import CalledFunction, MessageToolCall
from edge.dialects.blocks import BlockAdded, BlockOpened, Step
from edge.dialects.responses_request import ResponsesRequest
from edge.dialects.responses_tools import separated
from edge.tool_calls.parts import Part, Said, Thought, ToolCall

Event = dict[str, Any]


def new_id(kind: str) -> str:
    """An id as OpenAI's, `kind` first."""
    return f"{kind}_{uuid.uuid4().hex}"


@dataclass
class ResponsesReply:
    """One reply, whole or as events; `sequence` counts the events."""

    body: ResponsesRequest
    model: str
    id: str = field(default_factory=lambda: new_id("resp"))
    created_at: int = field(default_factory=lambda: int(time.time()))
    sequence: int = 0
    ids: list[str] = field(default_factory=list)
    """Of the output items so far."""

    def whole(self, blocks: Sequence[Part], finish_reason: str, usage: dict[str, Any]) -> dict[str, Any]:
        """The complete reply. `usage`: the chat completion's."""
        cut = finish_reason == "length"
        while len(self.ids) < len(blocks):
            self.ids.append(item_id(blocks[len(self.ids)]))
        items = [self.item(index, part, "completed") for index, part in enumerate(blocks)]
        if cut and blocks and not isinstance(blocks[-1], ToolCall):  # a call is in the blocks when it is complete
            items[-1]["status"] = "incomplete"
        return self.head("incomplete" if cut else "completed") | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": items,
            "usage": _usage(usage),
        }

    def head(self, status: str) -> dict[str, Any]:
        """The reply before there is any output."""
        body = self.body
        echoed = ("instructions", "max_output_tokens", "previous_response_id", "temperature", "top_p", "user")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "store": body.store is not False,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "truncation": "disabled",
            "usage": None,
            "metadata": body.metadata or {},
            **{name: getattr(body, name) for name in echoed},
        }

    def opening(self) -> list[Event]:
        """The events that begin a stream."""
        response = self.head("in_progress")
        return [self._event(f"response.{kind}", response=response) for kind in ("created", "in_progress")]

    def events(self, step: Step, status: str = "completed") -> list[Event]:
        """What a step of the blocks is in the stream; `status` is that of a block that ends."""
        index = step.index
        if isinstance(step, BlockOpened):
            self.ids.append(item_id(step.part))
            empty = step.part._replace(arguments="") if isinstance(step.part, ToolCall) else type(step.part)("")
            return [
                self._event(
                    "response.output_item.added", output_index=index, item=self.item(index, empty, "in_progress")
                ),
                *self._content(index, "response.content_part.added", Said("") if isinstance(step.part, Said) else None),
            ]
        if isinstance(step, BlockAdded):
            return [self._text(index, step.part, "delta")]
        return [
            self._text(index, step.part, "done"),
            *self._content(index, "response.content_part.done", step.part),
            self._event("response.output_item.done", output_index=index, item=self.item(index, step.part, status)),
        ]

    def closing(self, response: dict[str, Any]) -> Event:
        """The event that ends a stream with the complete reply."""
        return self._event(f"response.{response['status']}", response=response)

    def item(self, index: int, part: Part, status: str) -> dict[str, Any]:
        """A block as an output item."""
        head = {"id": self.ids[index], "status": status}
        if isinstance(part, ToolCall):
            call = {"call_id": part.id, **separated(part.name, self.body.tools or []), "arguments": part.arguments}
            return head | {"type": "function_call"} | call
        if isinstance(part, Thought):
            content = [{"type": "reasoning_text", "text": part.text}] if part.text else []
            return head | {"type": "reasoning", "summary": [], "content": content}
        content = [_output_text(part)] if part.text else []
        return head | {"type": "message", "role": "assistant", "content": content}

    def _content(self, index: int, kind: str, part: Part | None) -> list[Event]:
        if not isinstance(part, Said):
            return []
        place = {"item_id": self.ids[index], "output_index": index, "content_index": 0}
        return [self._event(kind, **place, part=_output_text(part))]

    def _text(self, index: int, part: Part, stage: str) -> Event:
        """A `delta` or, when the block is `done`, its whole text."""
        place: dict[str, Any] = {"item_id": self.ids[index], "output_index": index}
        if isinstance(part, ToolCall):
            name = separated(part.name, self.body.tools or [])["name"]
            value = {"delta": part.arguments} if stage == "delta" else {"arguments": part.arguments, "name": name}
            return self._event(f"response.function_call_arguments.{stage}", **place, **value)
        kind = "reasoning_text" if isinstance(part, Thought) else "output_text"
        extra: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        value = {"delta" if stage == "delta" else "text": part.text}
        return self._event(f"response.{kind}.{stage}", **place, content_index=0, **value, **extra)

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self.sequence = self.sequence, self.sequence + 1
        return {"type": kind, "sequence_number": number, **fields}


def item_id(part: Part) -> str:
    """A new id for a block's item."""
    return new_id({Said: "msg", Thought: "rs", ToolCall: "fc"}[type(part)])


def as_message(blocks: Sequence[Part]) -> Message:
    """The answer as a message of the conversation that a later request continues."""
    text = "".join(part.text for part in blocks if isinstance(part, Said))
    calls = [
        MessageToolCall(CalledFunction(part.name, part.arguments), part.id)
        for part in blocks
        if isinstance(part, ToolCall)
    ]
    return Message("assistant", text or (None if calls else ""), tool_calls=calls or None)


def _output_text(part: Said) -> dict[str, Any]:
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    thoughts = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thoughts},
        "total_tokens": usage["total_tokens"],
    }
