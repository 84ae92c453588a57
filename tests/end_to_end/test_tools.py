"""Tool calls with a real cloud: in every mode a forced call is one, and a lossless call is the cloud's very call."""

from typing import Any

import pytest

from tests.conftest import Servers
from tests.edge.tool_calls.test_api import CLOCK, WEATHER, calls_of

QUESTIONS = ["What is the weather in Rome?", "What is AI?", "The capital of Peru, please.", "1 2 3"]


def body(question: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "tools": [WEATHER, CLOCK], "temperature": 0, "max_tokens": 120, **fields}


NAMED = {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}


@pytest.mark.parametrize("fields", [NAMED, {"tool_choice": "required", "parallel_tool_calls": False}])
async def test_a_lossless_call_is_the_clouds(servers: Servers, fields: dict[str, Any]) -> None:
    for question in QUESTIONS:
        answers = {
            mode: await servers.edge.post("/v1/chat/completions", body(question, **fields, **asked), dict)
            for mode, asked in {
                "cloud_only": {"mode": "cloud_only"},
                "rounds": {"use_confidence_check": False, "way": "rounds"},
                "continuous": {"use_confidence_check": False, "way": "continuous"},
            }.items()
        }
        calls = {mode: calls_of(answer) for mode, answer in answers.items()}
        assert calls["rounds"] == calls["continuous"] == calls["cloud_only"] != []
        assert all(answer["choices"][0]["finish_reason"] == "tool_calls" for answer in answers.values())
        reports = [answer["collaboration"] for answer in answers.values()]
        assert [report["degraded"] for report in reports] == [None] * 3
        assert all(report["lossless"] for report in reports)


@pytest.mark.parametrize("mode", ["collaborative", "edge_only", "cloud_only"])
async def test_tools_that_may_be_called_leave_an_answer_in_every_mode(servers: Servers, mode: str) -> None:
    answer = await servers.edge.post("/v1/chat/completions", body(QUESTIONS[0], mode=mode), dict)
    message = answer["choices"][0]["message"]
    assert message["content"] or message["tool_calls"]
