"""litellm's SDK: chat, stream, tools, schema, by OpenAI's and by Anthropic's form. Prints what it got, as JSON.

Arguments: the URL, and the model as that server names it.
"""

import json
import sys
from typing import Any, Literal

import litellm
import pydantic

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}}
QUESTION = [{"role": "user", "content": "What is machine learning?"}]


class Cabin(pydantic.BaseModel):
    kind: Literal["hut", "lodge"]
    tall: bool


url, name = sys.argv[1:]
found: dict[str, Any] = {}
for provider, base in (("openai", url + "/v1"), ("hosted_vllm", url + "/v1"), ("anthropic", url)):
    asked: dict[str, Any] = {
        "model": f"{provider}/{name}",
        "api_base": base,
        "api_key": "none",
        "temperature": 0,
        "max_tokens": 80,
        "max_retries": 0,
    }
    whole = litellm.completion(messages=QUESTION, **asked)
    chunks = list(litellm.completion(messages=QUESTION, stream=True, **asked))
    forced = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    message = litellm.completion(messages=QUESTION, **asked, **forced).choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}
    last = litellm.completion(messages=[*QUESTION, message, result], tools=[TOOL], **asked).choices[0]
    found[provider] = {
        "chat": whole.choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "call": [call.function.name, json.loads(call.function.arguments)],
        "after the call": last.message.role,
        "schema": json.loads(
            litellm.completion(messages=QUESTION, response_format=Cabin, **asked).choices[0].message.content
        ),
    }
where = {"model": f"openai/{name}", "api_base": url + "/v1", "api_key": "none"}
answer = litellm.responses(input="What is machine learning?", **where)
found["responses"] = answer.output[0].content[0].text
print(json.dumps(found))
