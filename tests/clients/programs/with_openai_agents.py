"""openai-agents: a hand-off and a tool, whole and streamed, by chat and by responses. Prints what it got, as JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
FORCED = ModelSettings(temperature=0, tool_choice="required", parallel_tool_calls=False)
cities = list[str]()


@function_tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    cities.append(city)
    return "22 degrees"


async def main() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in (("chat", OpenAIChatCompletionsModel), ("responses", OpenAIResponsesModel)):
        model = kind("demo-edge", client)
        expert = Agent("Expert", model=model, model_settings=FORCED, tools=[weather])
        desk = Agent("Desk", model=model, model_settings=FORCED, handoffs=[expert])
        cities.clear()
        whole = await Runner.run(desk, "What is the weather?")
        found[name] = [whole.last_agent.name, list(cities), type(whole.final_output).__name__]
        cities.clear()
        streamed = Runner.run_streamed(desk, "What is the weather?")
        events = [event.item.type async for event in streamed.stream_events() if event.type == "run_item_stream_event"]
        found[f"{name} streamed"] = [streamed.last_agent.name, list(cities), type(streamed.final_output).__name__]
        found[f"{name} events"] = events
    return found


print(json.dumps(asyncio.run(main())))
