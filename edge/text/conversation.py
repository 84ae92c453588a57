"""A chat as a template gets it, checked; templates that know no tools get calls, results and descriptions as text."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import RequestError
from common.protocol.content.openai_content import check_contents
from common.protocol.openai import Message
from common.protocol.openai_tools import arguments_of

RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "documents"})
"""Variables of templates that a request sets by fields of their own."""
TOOL_ROLE = re.compile(r"""['"]tool['"]|tool_response|ipython""")
INTRODUCTION = """# Tools

You may call functions. Their signatures, one a line:
{tools}

To call one, write its name and arguments as JSON between two tags, and nothing after the last call:
<tool_call>
{{"name": "NAME", "arguments": {{}}}}
</tool_call>"""

Turn = dict[str, Any]


@dataclass(frozen=True)
class WrittenPrompt:
    """A conversation as a chat template wrote it; `template`: its source, which tells how the model answers."""

    text: str
    template: str


@dataclass(frozen=True)
class Conversation:
    """`variables`: further ones that the template may read, such as `enable_thinking`."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages:
            raise RequestError("messages must not be empty", param="messages")
        check_contents(self.messages)
        if reserved := RESERVED & self.variables.keys():
            raise RequestError(f"{min(reserved)} is not a variable to set here", param="chat_template_kwargs")

    def turns(self) -> list[Turn]:
        """The messages as the JSON objects that templates read; RequestError for results of no call."""
        called = set[str]()
        turns = list[Turn]()
        for at, message in enumerate(self.messages):
            turns.append(_turn(message, f"messages[{at}]"))
            called |= {call.id for call in message.tool_calls or ()}
            if message.role == "tool" and message.tool_call_id not in called:
                reason = f"the id {message.tool_call_id or ''!r} is of no call in the messages before"
                raise RequestError(reason, param=f"messages[{at}].tool_call_id")
        return turns

    def frame(self, template: str) -> dict[str, Any]:
        """All that `template` is rendered with."""
        turns, tools = self.turns(), list(self.tools)
        if "tool_calls" not in template:
            turns = [_call_as_text(turn) for turn in turns]
        if not TOOL_ROLE.search(template):
            turns = _results_as_text(turns)
        if tools and "tools" not in template:
            turns, tools = _introduced(turns, tools), []
        return {**self.variables, "messages": turns, "tools": tools or None}


def _turn(message: Message, param: str) -> Turn:
    turn: Turn = {"role": message.role, "content": message.text}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls
        ]
        for at, call in enumerate(message.tool_calls):
            arguments_of(call, f"{param}.tool_calls[{at}].function.arguments")
        if message.content is None:
            turn["content"] = None
    thought = message.reasoning_content or message.reasoning
    optional = {"name": message.name, "tool_call_id": message.tool_call_id}
    thoughts = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), thought)
    return turn | {key: value for key, value in (optional | thoughts).items() if value is not None}


def _call_as_text(turn: Turn) -> Turn:
    if "tool_calls" not in turn:
        return turn
    functions = [call["function"] for call in turn["tool_calls"]]
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(one["name"])}, "arguments": {one["arguments"] or "{}"}}}\n</tool_call>'
        for one in functions
    ]
    rest = {key: value for key, value in turn.items() if key != "tool_calls"}
    return rest | {"content": "\n".join([*filter(None, [turn["content"]]), *calls])}


def _results_as_text(turns: list[Turn]) -> list[Turn]:
    """Results that follow each other are one turn of the user: many templates want the roles to alternate."""
    made = list[Turn]()
    for at, turn in enumerate(turns):
        if turn["role"] != "tool":
            made.append(turn)
            continue
        text = f"<tool_response>\n{turn['content']}\n</tool_response>"
        if at and turns[at - 1]["role"] == "tool":
            made[-1]["content"] += "\n" + text
        else:
            made.append({"role": "user", "content": text})
    return made


def _introduced(turns: list[Turn], tools: list[Mapping[str, Any]]) -> list[Turn]:
    """The turns with a description of the tools in the system's."""
    text = INTRODUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": text}, *turns]
    return [turns[0] | {"content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
