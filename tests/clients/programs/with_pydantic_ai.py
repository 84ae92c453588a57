"""pydantic-ai: text, streams, and outputs by the model's own schema and by a tool. Prints what it got, as JSON."""

import json
import sys
from typing import Any, Literal

import pydantic
from pydantic_ai import Agent, NativeOutput, RunContext, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Monument(pydantic.BaseModel):
    kind: Literal["tower", "bridge"]
    tall: bool


def forced_at_first(context: RunContext[None]) -> Any:
    """The demo model calls tools only if it must; then it is to answer."""
    return {"temperature": 0} | ({"tool_choice": ["weather"]} if context.run_step == 1 else {})


question = "What is machine learning?"
provider = OpenAIProvider(base_url=sys.argv[1] + "/v1", api_key="none")
found: dict[str, Any] = {}
cities = list[str]()
for name, kind in (("chat", OpenAIChatModel), ("responses", OpenAIResponsesModel)):
    model = kind("demo-edge", provider=provider)
    settings: Any = {"temperature": 0}
    found[name] = Agent(model, model_settings=settings).run_sync(question).output
    with Agent(model, model_settings=settings).run_stream_sync(question) as stream:
        found[f"{name} streamed"] = "".join(stream.stream_text(delta=True))
    for way, output in (("native", NativeOutput(Monument)), ("tool", ToolOutput(Monument))):
        answer = Agent(model, output_type=output, model_settings=settings).run_sync("A sight?")
        found[f"{name} {way}"] = answer.output.model_dump()

    cities.clear()
    agent = Agent(model, model_settings=forced_at_first)

    @agent.tool_plain
    def weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather in a city."""
        cities.append(city)
        return "22 degrees"

    found[f"{name} tool round trip"] = agent.run_sync("The weather?").output
    found[f"{name} cities"] = list(cities)
print(json.dumps(found))
