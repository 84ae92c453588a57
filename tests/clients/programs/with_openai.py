"""OpenAI's client in Python: chat, stream, tools, responses, structured output. Prints what it got, as JSON."""

import json
import sys
from typing import Any, Literal

import openai
import pydantic

QUESTION: Any = [{"role": "user", "content": "What is machine learning?"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}}


class Sight(pydantic.BaseModel):
    kind: Literal["tower", "bridge"]
    tall: bool


client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
asked: dict[str, Any] = {"model": "demo-edge", "temperature": 0}
found: dict[str, Any] = {}

# Chat
found["chat"] = client.chat.completions.create(messages=QUESTION, **asked).choices[0].message.content
with client.chat.completions.stream(messages=QUESTION, **asked) as stream:
    found["streamed"] = "".join(event.delta for event in stream if event.type == "content.delta")

# Tools
forced = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}}
message = client.chat.completions.create(messages=QUESTION, **asked, **forced).choices[0].message
(call,) = message.tool_calls
found["call"] = [call.function.name, json.loads(call.function.arguments)]
with client.chat.completions.stream(messages=QUESTION, **asked, **forced) as stream:
    deltas = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
    (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
found["call deltas joined"] = ["".join(deltas), streamed.function.arguments, call.function.arguments]
result = {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}
last = client.chat.completions.create(messages=[*QUESTION, message, result], tools=[TOOL], **asked).choices[0]
found["after the call"] = last.finish_reason

# Structured output
parsed = client.chat.completions.parse(messages=QUESTION, response_format=Sight, **asked)
found["parsed"] = parsed.choices[0].message.parsed.model_dump()

# Responses
response = client.responses.create(input=QUESTION[0]["content"], **asked)
found["response"] = response.output_text
with client.responses.stream(input=QUESTION[0]["content"], **asked) as stream:
    found["response streamed"] = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
tool = {"type": "function", **TOOL["function"]}
first = client.responses.create(input="The weather?", tools=[tool], tool_choice="required", **asked)
(item, *_) = first.output
found["response call"] = [item.name, json.loads(item.arguments)]
results = [
    {"type": "function_call_output", "call_id": one.call_id, "output": "22 degrees"}
    for one in first.output
    if one.type == "function_call"
]
again = client.responses.create(input=results, previous_response_id=first.id, tools=[tool], **asked)
found["response after the call"] = again.status
found["response parsed"] = client.responses.parse(
    input="A sight?", text_format=Sight, **asked
).output_parsed.model_dump()
print(json.dumps(found))
