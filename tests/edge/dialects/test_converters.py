"""Both dialects become the chat they mean, name what is wrong in their own words, and render an answer's blocks."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from common.errors import RequestError
from common.protocol import codec
from common.protocol.openai import ChatRequest, Message
from edge.dialects.blocks import BlockBuilder
from edge.dialects.collaboration_fields import naming
from edge.dialects.messages import block_of, events_of
from edge.dialects.messages_request import NAMES as MESSAGES_NAMES
from edge.dialects.messages_request import MessagesRequest
from edge.dialects.response_store import KeptConversation, ResponseNotFound, ResponseStore
from edge.dialects.responses_reply import ResponsesReply
from edge.dialects.responses_request import NAMES as RESPONSES_NAMES
from edge.dialects.responses_request import ResponsesRequest
from edge.tool_calls.parts import Part, Said, Thought, ToolCall

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "get_weather", "description": "?", "parameters": SCHEMA}
CHAT_TOOL = {"type": "function", "function": FUNCTION}


def responses(body: dict[str, Any], before: list[Message] | None = None) -> ChatRequest:
    request = codec.decode(msgspec.json.encode(body), ResponsesRequest)
    with naming(RESPONSES_NAMES):
        return request.chat(request.messages(before or []))


def messages(body: dict[str, Any]) -> ChatRequest:
    with naming(MESSAGES_NAMES):
        return codec.decode(msgspec.json.encode({"max_tokens": 9, **body}), MessagesRequest).chat()


def test_a_responses_request_is_the_chat_it_means() -> None:
    chat = responses(
        {
            "model": "m",
            "instructions": "Be brief.",
            "input": [
                {"role": "developer", "content": [{"type": "input_text", "text": "In English."}]},
                {"role": "user", "content": "Weather?"},
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [],
                    "content": [{"type": "reasoning_text", "text": "Hm"}],
                },
                {
                    "type": "function_call",
                    "id": "fc",
                    "call_id": "a",
                    "name": "get_weather",
                    "arguments": '{"city":"Rome"}',
                },
                {"type": "function_call", "call_id": "b", "name": "get_weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "22"},
                {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "rain"}]},
            ],
            "tools": [{"type": "function", "strict": True, **FUNCTION}, {"type": "web_search"}],
            "tool_choice": {"type": "function", "name": "get_weather"},
            "text": {"format": {"type": "text"}},
            "reasoning": {"effort": "low"},
            "max_output_tokens": 7,
            "mode": "edge_only",
            "seed": 3,
        }
    )
    assert [(one.role, one.content, one.tool_call_id) for one in chat.messages] == [
        ("system", "Be brief.\n\nIn English.", None),
        ("user", "Weather?", None),
        ("assistant", None, None),
        ("tool", "22", "a"),
        ("tool", "rain", "b"),
    ]
    calling = chat.messages[2]
    assert calling.reasoning_content == "Hm"
    assert [(one.id, one.function.arguments) for one in calling.tool_calls or ()] == [
        ("a", '{"city":"Rome"}'),
        ("b", "{}"),
    ]
    assert chat.tools == [{"type": "function", "function": {**FUNCTION, "strict": True}}]
    assert chat.toolset.forced
    assert (chat.max_tokens, chat.reasoning_effort, chat.mode, chat.seed) == (7, "low", "edge_only", 3)


def test_a_structured_output_of_responses_is_a_response_format() -> None:
    chat = responses({"input": "x", "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}})
    assert chat.response_format is not None and chat.response_format.json_schema is not None
    assert chat.response_format.json_schema.schema == SCHEMA


def test_allowed_tools_leave_only_those() -> None:
    tools = [{"type": "function", **FUNCTION}, {"type": "function", "name": "clock", "parameters": {}}]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]}
    chat = responses({"input": "x", "tools": tools, "tool_choice": allowed})
    assert (list(chat.toolset.schemas), chat.toolset.forced) == (["clock"], True)


NAMESPACE = {"type": "namespace", "name": "maps", "tools": [{"type": "function", **FUNCTION}]}


def test_functions_of_a_namespace_keep_it_in_the_prompt_the_answer_and_the_history() -> None:
    asked = {"input": "x", "tools": [{"type": "function", **FUNCTION}, NAMESPACE]}
    assert list(responses(asked).toolset.schemas) == ["get_weather", "maps.get_weather"]
    forced = {"type": "function", "namespace": "maps", "name": "get_weather"}
    assert list(responses(asked | {"tool_choice": forced}).toolset.schemas) == ["maps.get_weather"]
    builder = BlockBuilder()
    builder.take([ToolCall("get_weather", "{}", "a"), ToolCall("maps.get_weather", "{}", "b")])
    body = codec.decode(msgspec.json.encode(asked), ResponsesRequest)
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    plain, spaced = ResponsesReply(body, "m").whole(builder.blocks, "stop", usage)["output"]
    assert (plain["name"], plain.get("namespace")) == ("get_weather", None)
    assert (spaced["name"], spaced.get("namespace")) == ("get_weather", "maps")
    (calling,) = responses(asked | {"input": [plain, spaced]}).messages
    assert [call.function.name for call in calling.tool_calls or ()] == ["get_weather", "maps.get_weather"]


def test_a_messages_request_is_the_chat_it_means() -> None:
    chat = messages(
        {
            "model": "m",
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "Weather?"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm", "signature": ""},
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Rome"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "22"}]},
                        {"type": "text", "text": "So?"},
                    ],
                },
            ],
            "tools": [{"name": "get_weather", "description": "?", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "thinking": {"type": "disabled"},
            "stop_sequences": ["END"],
            "top_k": 5,
        }
    )
    assert [(one.role, one.content) for one in chat.messages] == [
        ("system", "Be brief."),
        ("user", "Weather?"),
        ("assistant", "I look."),
        ("tool", "22"),
        ("user", "So?"),
    ]
    assert chat.messages[2].reasoning_content == "Hm"
    assert chat.tools == [CHAT_TOOL]
    assert chat.toolset.forced and not chat.toolset.parallel
    assert (chat.enable_thinking, chat.stop, chat.top_k, chat.max_tokens) == (False, ["END"], 5, 9)


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("read", "body", "param", "allowed"),
    [
        (responses, {"input": "x", "service_tier": "foo"}, "service_tier", "flex"),
        (responses, {"input": "x", "reasoning": {"effort": "foo"}}, "reasoning.effort", "minimal"),
        (responses, {"input": [{"role": "foo", "content": "x"}]}, "input[0].role", "developer"),
        (messages, {"messages": [{"role": "foo", "content": "x"}]}, "messages[0].role", "assistant"),
        (messages, {"messages": [USER], "output_config": {"effort": "foo"}}, "output_config.effort", "low"),
        (messages, {"messages": [USER], "thinking": {"type": "foo"}}, "thinking.type", "adaptive"),
        (messages, {"messages": [USER], "service_tier": "foo"}, "service_tier", "standard_only"),
    ],
)
def test_an_unknown_word_is_refused_with_those_that_are_allowed(
    read: Callable[[dict[str, Any]], ChatRequest], body: dict[str, Any], param: str, allowed: str
) -> None:
    with pytest.raises(RequestError, match=f"'foo'; allowed: .*{allowed}") as refusal:
        read(body)
    assert refusal.value.param == param
    if not param.endswith("role"):
        assert read(json.loads(json.dumps(body).replace('"foo"', "null"))), "null is as if absent"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x", "temperature": 9}, "temperature"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "mode": "nonsense"}, "mode"),
        ({"input": "x", "unheard_of": 1}, None),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input[0]"),
        ({"input": "x", "tools": [{"type": "computer"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "namespace", "tools": []}]}, "tools[0].name"),
        ({"input": "x", "tools": [NAMESPACE | {"tools": "all"}]}, "tools[0].tools"),
        ({"input": "x", "tools": [NAMESPACE | {"tools": [{"type": "custom"}]}]}, "tools[0].tools[0].type"),
        ({"input": "x", "tools": [{"type": "function", **FUNCTION}], "tool_choice": {"type": "x"}}, "tool_choice"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
def test_a_wrong_responses_request_is_refused_in_its_own_words(body: dict[str, Any], param: str | None) -> None:
    with pytest.raises(RequestError) as refusal:
        responses(body)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [USER], "temperature": 9}, "temperature"),
        ({"messages": [USER], "max_tokens": 0}, "max_tokens"),
        ({"messages": [USER], "unheard_of": 1}, None),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": 1}]}
                ]
            },
            "messages[0].content[0].input",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "I"}]}, "messages"),
        ({"messages": [USER], "system": 5}, "system"),
        ({"messages": [USER], "system": [{"type": "image"}]}, "system[0]"),
        ({"messages": [USER], "tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"messages": [USER], "tools": [{"name": "f"}]}, "tools[0].input_schema"),
        (
            {"messages": [USER], "tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "x"}},
            "tool_choice.type",
        ),
        ({"messages": [USER], "mcp_servers": [{}]}, "mcp_servers"),
        ({"messages": [USER], "output_config": {"format": {"type": "x"}}}, "output_config.format"),
    ],
)
def test_a_wrong_messages_request_is_refused_in_its_own_words(body: dict[str, Any], param: str | None) -> None:
    with pytest.raises(RequestError) as refusal:
        messages(body)
    assert refusal.value.param == param


CALL = ToolCall("f", '{"a": 1}', "id1")
PARTS: list[Part] = [Thought("I "), Thought("think."), Said("Let "), Said("me."), CALL, CALL, Said("Done.")]
BLOCKS = [Thought("I think."), Said("Let me."), CALL, CALL, Said("Done.")]


def test_parts_are_grouped_into_blocks_whole_and_streamed() -> None:
    builder, one_by_one = BlockBuilder(), BlockBuilder()
    steps = [*builder.take(PARTS), *builder.close()]
    single = [step for part in PARTS for step in one_by_one.take([part])] + one_by_one.close()
    assert builder.blocks == BLOCKS
    assert steps == single


def test_the_events_of_messages_joined_are_the_message() -> None:
    builder = BlockBuilder()
    texts: dict[int, str] = {}
    blocks: dict[int, dict[str, Any]] = {}
    for event in [event for step in [*builder.take(PARTS), *builder.close()] for event in events_of(step)]:
        if event["type"] == "content_block_start":
            blocks[event["index"]] = event["content_block"]
            texts[event["index"]] = ""
        elif event["type"] == "content_block_delta":
            texts[event["index"]] += next(value for key, value in event["delta"].items() if key != "type")
    assert [block["type"] for block in blocks.values()] == ["thinking", "text", "tool_use", "tool_use", "text"]
    assert list(texts.values()) == ["I think.", "Let me.", '{"a": 1}', '{"a": 1}', "Done."]
    assert block_of(CALL) == {"type": "tool_use", "id": "id1", "name": "f", "input": {"a": 1}}


def test_the_events_of_responses_are_numbered_and_end_in_the_whole_reply() -> None:
    body = codec.decode(b'{"input": "x"}', ResponsesRequest)
    reply, builder = ResponsesReply(body, "m"), BlockBuilder()
    events = reply.opening()
    for step in [*builder.take(PARTS), *builder.close()]:
        events += reply.events(step)
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    events.append(reply.closing(reply.whole(builder.blocks, "stop", usage)))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call", "function_call", "message"]
    assert len({item["id"] for item in done}) == len(done)


def test_an_answer_that_is_cut_off_is_incomplete() -> None:
    reply = ResponsesReply(codec.decode(b'{"input": "x"}', ResponsesRequest), "m")
    whole = reply.whole([Said("cut o")], "length", {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["output"][0]["status"] == "incomplete"


# The store


def kept(text: str) -> KeptConversation:
    return KeptConversation([Message("user", text)])


def test_a_conversation_is_found_by_its_own_tenant_only() -> None:
    store = ResponseStore()
    store.put("a", "resp_1", kept("x"))
    assert store.get("a", "resp_1") == kept("x")
    for tenant, id in (("b", "resp_1"), ("a", "resp_2")):
        with pytest.raises(ResponseNotFound) as refusal:
            store.get(tenant, id)
        assert (refusal.value.param, refusal.value.status) == ("previous_response_id", 400)


def test_the_store_forgets_what_was_used_longest_ago_and_never_exceeds_its_bytes() -> None:
    store = ResponseStore(max_bytes=3000, max_responses=100)
    for number in range(50):
        store.put("", str(number), kept("x" * 500))
        assert store.bytes <= 3000
        store.get("", "0" if number < 4 else str(number))
    with pytest.raises(ResponseNotFound):
        store.get("", "1")
    store.put("", "large", kept("x" * 5000))
    with pytest.raises(ResponseNotFound):
        store.get("", "large")
    assert store.get("", "49")


def test_the_store_holds_so_many_and_no_more() -> None:
    store = ResponseStore(max_responses=3)
    for number in range(5):
        store.put("", str(number), kept("x"))
    with pytest.raises(ResponseNotFound):
        store.get("", "1")
    assert [store.get("", str(number)) for number in (2, 3, 4)] == [kept("x")] * 3
