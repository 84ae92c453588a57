"""Anthropic's client in Python: messages, streams, a tool round trip, structured output. Prints what it got."""

import json
import sys
from typing import Any, Literal

import anthropic
import pydantic

QUESTION: Any = [{"role": "user", "content": "What is machine learning?"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL: Any = {"name": "weather", "description": "The weather.", "input_schema": CITY}


class Tower(pydantic.BaseModel):
    kind: Literal["tower", "bridge"]
    tall: bool


client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
asked: dict[str, Any] = {"model": "demo-edge", "max_tokens": 100}
found: dict[str, Any] = {}
found["text"] = client.messages.create(messages=QUESTION, extra_body={"temperature": 0}, **asked).content[0].text
with client.messages.stream(messages=QUESTION, extra_body={"temperature": 0}, **asked) as stream:
    found["streamed"] = "".join(stream.text_stream)
found["counted"] = client.messages.count_tokens(messages=QUESTION, model="demo-edge").input_tokens
forced: Any = {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
with client.messages.stream(messages=QUESTION, **asked, **forced) as stream:
    deltas = "".join(event.partial_json for event in stream if event.type == "input_json")
    first = stream.get_final_message()
(call,) = first.content
found["call"] = [call.name, call.input]
found["call deltas joined"] = [json.loads(deltas), call.input]
result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "22 degrees"}]}
turns: Any = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
found["after the call"] = client.messages.create(messages=turns, tools=[TOOL], **asked).role
parsed = client.messages.parse(messages=QUESTION, output_format=Tower, **asked)
found["parsed"] = parsed.parsed_output.model_dump()
print(json.dumps(found))
