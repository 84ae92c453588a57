"""langchain-openai: chat, text, streams, batches, tools, structured output, errors. Prints what it got, as JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


class Harbour(BaseModel):
    """A harbour."""

    kind: Literal["river", "sea"]


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"22 degrees in {city}"


where: dict[str, Any] = {"base_url": sys.argv[1] + "/v1", "api_key": "none", "model": "demo-edge"}
where |= {"temperature": 0, "max_retries": 0}
chat, text = ChatOpenAI(**where), OpenAI(**where, max_tokens=12)
found: dict[str, Any] = {}
question = "What is machine learning?"
found["chat"] = chat.invoke(question).content
found["streamed"] = "".join(chunk.content for chunk in chat.stream(question))
found["asynchronous"] = asyncio.run(chat.ainvoke(question)).content
found["batch"] = [answer.content for answer in chat.batch(["What is AI?", question])]
scored = chat.bind(logprobs=True, top_logprobs=2).invoke("What is AI?")
found["logprobs"] = len(scored.response_metadata["logprobs"]["content"])
found["tokens"] = scored.usage_metadata["output_tokens"]
found["text"] = text.invoke("<|user|>What is AI?<|assistant|>")
found["text streamed"] = "".join(text.stream("<|user|>What is AI?<|assistant|>"))
found["texts"] = [one[0].text for one in text.generate(["The", "A"]).generations]
for method in ("json_schema", "function_calling"):
    found[method] = chat.with_structured_output(Harbour, method=method).invoke("A harbour?").kind
responses = ChatOpenAI(**where, use_responses_api=True)
for name, model in (("chat", chat), ("responses", responses)):
    forced = model.bind_tools([weather], tool_choice="weather")
    asked = [HumanMessage("The weather?")]
    message = forced.invoke(asked)
    (call,) = message.tool_calls
    streamed = None
    for chunk in forced.stream(asked):
        streamed = chunk if streamed is None else streamed + chunk
    found[f"{name} calls"] = [[one["name"], one["args"]] for one in (call, *streamed.tool_calls)]
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    found[f"{name} after the call"] = model.bind_tools([weather]).invoke([*asked, message, result]).type
try:
    chat.invoke("word " * 3000)
except openai.BadRequestError as error:
    found["error"] = error.code
print(json.dumps(found))
