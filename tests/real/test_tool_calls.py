"""Tool calls of a real pair: lossless ones are the cloud's own, call for call, and their stream is the whole."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from common.http.client import HTTPClient
from tests.real.real_models import SAME, RealServers, needs, real_servers

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    *needs("qwen2.5-coder-0.5b.gguf", "qwen2.5-coder-1.5b"),
]
AT_ONCE = 8
LOSSLESS: dict[str, Any] = {"mode": "collaborative", "use_confidence_check": False}
CITIES = (
    "Berlin Paris Tokyo Nairobi Lima Oslo Cairo Delhi Sydney Toronto Lagos Madrid Vienna Seoul Quito Dublin".split()
)
PEOPLE = "Ann Ben Chloe Dev Emma Finn Grace Hugo Iris Jack Kira Liam Mona Nils Olga Paul Quinn".split()


def tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    tool("get_weather", "The weather of a city.", city={"type": "string"}, unit={"enum": ["celsius", "fahrenheit"]}),
    tool("multiply", "The product of two numbers.", a={"type": "integer"}, b={"type": "integer"}),
    tool("send_message", "Sends a person a message.", to={"type": "string"}, text={"type": "string"}),
]
PROMPTS = [
    *(f"What is the weather in {city} now, in degrees Celsius?" for city in CITIES),
    *(f"Send {person} a message: dinner is at {6 + at % 4} o'clock." for at, person in enumerate(PEOPLE)),
    *(f"What is {117 * n + 3} times {93 * n + 8}? Use a tool." for n in range(1, 18)),
]
CHOICES = ["auto", "required"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealServers]:
    async with real_servers(tmp_path_factory.mktemp("tools"), [SAME]) as made:
        yield made


def body(at: int, **fields: Any) -> dict[str, Any]:
    """Every other question must be answered by a call."""
    messages = [{"role": "user", "content": PROMPTS[at]}]
    asked = {"messages": messages, "tools": TOOLS, "tool_choice": CHOICES[at % 2]}
    return asked | {"temperature": 0, "max_tokens": 64} | fields


async def answers(edge: HTTPClient, **fields: Any) -> list[dict[str, Any]]:
    """To all PROMPTS, some at a time."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(at: int) -> dict[str, Any]:
        async with slots:
            answer: dict[str, Any] = await edge.post("/v1/chat/completions", body(at, **fields), dict)
        assert answer["collaboration"]["degraded"] is None
        return answer

    return await asyncio.gather(*(ask(at) for at in range(len(PROMPTS))))


def said(answer: dict[str, Any]) -> tuple[str | None, list[dict[str, str]], str]:
    """Text, calls without their random ids, and why it ended."""
    [choice] = answer["choices"]
    calls = choice["message"].get("tool_calls") or []
    return choice["message"]["content"], [call["function"] for call in calls], choice["finish_reason"]


async def test_lossless_calls_are_the_clouds_own(real: RealServers) -> None:
    edge = real.edges[SAME]
    whole, truths = await answers(edge, **LOSSLESS), await answers(edge, mode="cloud_only")
    assert len(PROMPTS) == 50
    assert [said(answer) for answer in whole] == [said(truth) for truth in truths]
    calls = [call for truth in truths for call in said(truth)[1]]
    assert all(said(truth)[1] or at % 2 == 0 or said(truth)[2] == "length" for at, truth in enumerate(truths))
    assert all(call["name"] in {one["function"]["name"] for one in TOOLS} for call in calls)
    drafted, accepted = (sum(answer["collaboration"][name] for answer in whole) for name in ("drafted", "accepted"))
    print(f"{len(calls)} calls in {len(PROMPTS)} answers; {accepted} of {drafted} drafted tokens accepted")
    assert len(calls) >= len(PROMPTS) // 2 and accepted > 0


async def test_the_pieces_of_a_streamed_call_are_the_whole_call(real: RealServers) -> None:
    edge = real.edges[SAME]
    for at in (1, 17, 35, 49):
        whole: dict[str, Any] = await edge.post("/v1/chat/completions", body(at, **LOSSLESS), dict)
        calls = list[dict[str, str]]()
        async for event in edge.events("/v1/chat/completions", body(at, stream=True, **LOSSLESS)):
            for choice in json.loads(event)["choices"]:
                for piece in choice["delta"].get("tool_calls") or []:
                    if piece["index"] == len(calls):
                        calls.append({"name": "", "arguments": ""})
                    for key, value in piece["function"].items():
                        calls[piece["index"]][key] += value or ""
        assert calls == said(whole)[1] != []
