"""OpenAI's and Anthropic's own clients, unmodified, against a real edge: text, streams, a tool round trip, errors."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest

from tests.conftest import Edge
from tests.edge.tool_calls.test_api import WEATHER

MODEL = "demo-edge"
QUESTION = "What is machine learning?"
ANSWER = "Machine learning is"
FUNCTION: dict[str, Any] = WEATHER["function"]
RESPONSES_TOOL: Any = {"type": "function", **FUNCTION}
MESSAGES_TOOL: Any = {
    "name": FUNCTION["name"],
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
}
ASKED: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(edge: Edge) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=edge.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(edge: Edge) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=edge.url, api_key="none", max_retries=0) as made:
        yield made


# Chat completions with tools


def test_openai_makes_a_tool_round_trip(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    asked = {"model": MODEL, "tools": [WEATHER], "temperature": 0}
    first = create(messages=ASKED, tool_choice="required", parallel_tool_calls=False, **asked).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}
    last = create(messages=[*ASKED, first.message, result], **asked).choices[0]
    assert last.message.role == "assistant"


def test_openai_streams_the_same_call(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": ASKED, "tools": [WEATHER], "temperature": 0}
    asked["tool_choice"] = {"type": "function", "function": {"name": FUNCTION["name"]}}
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    assert whole and final.message.tool_calls
    assert final.finish_reason == "tool_calls"
    assert [one.function.arguments for one in final.message.tool_calls] == [one.function.arguments for one in whole]


# Responses


def test_openai_responses_answer_and_stream_the_same(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
    assert whole.output_text.startswith(ANSWER)
    assert whole.status == "completed"
    assert whole.usage is not None and whole.usage.output_tokens > 3
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == whole.output_text
    assert final.usage is not None and final.usage.total_tokens == whole.usage.total_tokens  # more of it was cached


def test_openai_responses_make_a_tool_round_trip_that_the_server_remembers(client: openai.OpenAI) -> None:
    forced: Any = {"type": "function", "name": FUNCTION["name"]}
    first = client.responses.create(model=MODEL, input=QUESTION, tools=[RESPONSES_TOOL], tool_choice=forced)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees"}]
    remembered = client.responses.create(
        model=MODEL, previous_response_id=first.id, input=result, tools=[RESPONSES_TOOL], temperature=0
    )
    told = client.responses.create(
        model=MODEL, input=[*ASKED, call.to_dict(), *result], tools=[RESPONSES_TOOL], temperature=0
    )
    assert remembered.previous_response_id == first.id
    assert remembered.output_text == told.output_text
    assert remembered.usage is not None and told.usage is not None
    assert remembered.usage.total_tokens == told.usage.total_tokens


def test_openai_responses_stream_a_call(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": QUESTION, "tools": [RESPONSES_TOOL], "tool_choice": "required"}
    with client.responses.stream(**asked, parallel_tool_calls=False) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    (call,) = final.output
    assert call.type == "function_call"
    assert "".join(deltas) == call.arguments


class Kind(pydantic.BaseModel):
    kind: Literal["city", "country"]


def test_openai_responses_parse_structured_output(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model=MODEL, input=QUESTION, text_format=Kind)
    assert isinstance(answer.output_parsed, Kind)


def test_openai_responses_that_are_cut_off_say_so_of_their_last_item_everywhere(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=3) as stream:
        done = {event.type: event for event in stream}
    whole: Any = done["response.incomplete"]
    item: Any = done["response.output_item.done"]
    assert whole.response.output[0].status == item.item.status == "incomplete"


def test_openai_responses_forget_what_is_not_to_be_stored(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=QUESTION, store=False, max_output_tokens=3)
    assert answer.status == "incomplete"
    for id in (answer.id, "resp_unheard_of"):
        with pytest.raises(openai.BadRequestError) as refusal:
            client.responses.create(model=MODEL, input="And?", previous_response_id=id)
        assert (refusal.value.param, refusal.value.code) == ("previous_response_id", "previous_response_not_found")


def test_openai_responses_name_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(model=MODEL, input="word " * 3000, stream=True)
    assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="another", input="x")


# Messages


def test_anthropic_answers_and_streams_the_same(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 60, "messages": ASKED, "extra_body": {"temperature": 0}}
    whole = claude.messages.create(**asked)
    (block,) = whole.content
    assert block.type == "text" and block.text.startswith(ANSWER)
    assert whole.stop_reason == "end_turn"
    with claude.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == block.text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_anthropic_counts_the_tokens_that_the_prompt_has(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "messages": ASKED, "system": "Be brief.", "tools": [MESSAGES_TOOL]}
    counted = claude.messages.count_tokens(**asked).input_tokens
    usage = claude.messages.create(max_tokens=1, **asked).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0) > 20


def test_anthropic_makes_a_tool_round_trip(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 120, "tools": [MESSAGES_TOOL]}
    choice: Any = {"type": "tool", "name": FUNCTION["name"]}
    with claude.messages.stream(messages=ASKED, tool_choice=choice, **asked) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    (call,) = first.content
    assert call.type == "tool_use"
    assert call.input["city"] in ("Paris", "Rome")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "22 degrees"}
    turns: Any = [*ASKED, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(messages=turns, **asked).role == "assistant"


def test_anthropic_learns_which_stop_sequence_ended_the_answer(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 60, "messages": ASKED, "extra_body": {"temperature": 0}}
    answer = claude.messages.create(stop_sequences=["unheard of", " is"], **asked)
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " is")
    assert answer.content[0].text == "Machine learning"  # type: ignore[union-attr]
    assert claude.messages.create(**(asked | {"max_tokens": 2})).stop_reason == "max_tokens"


def test_anthropic_raises_its_own_errors(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="context"):
        claude.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "word " * 3000}])
    with pytest.raises(anthropic.NotFoundError) as refusal:
        claude.messages.create(model="another", max_tokens=5, messages=ASKED)
    assert refusal.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model=MODEL, max_tokens=0, messages=ASKED)
