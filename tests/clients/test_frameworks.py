"""Packages and frameworks, unmodified, against the edge of a pair at its defaults."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.demo import free_ports
from tests.clients.client_programs import found_by, running_client, wait_until_ready

pytestmark = pytest.mark.clients
ANSWER = "Machine learning is"
CITIES = ("Paris", "Rome")


def is_object(found: dict[str, Any], kinds: tuple[str, str]) -> bool:
    """Whether it is one that the schema allows."""
    return found["kind"] in kinds and isinstance(found["tall"], bool) and len(found) == 2


def test_openai_in_python(edge_url: str, tmp_path: Path) -> None:
    found = found_by("with_openai.py", edge_url, tmp_path)
    assert found["chat"] == found["streamed"] == found["response"] == found["response streamed"]
    assert found["chat"].startswith(ANSWER)
    for name in ("call", "response call"):
        assert found[name][0] == "weather" and found[name][1]["city"] in CITIES
    assert len(set(found["call deltas joined"])) == 1
    assert found["after the call"] == "stop" and found["response after the call"] == "completed"
    assert is_object(found["parsed"], ("tower", "bridge")) and is_object(found["response parsed"], ("tower", "bridge"))


def test_openai_in_node(edge_url: str, tmp_path: Path) -> None:
    found = found_by("with_openai.mjs", edge_url, tmp_path)
    assert found["chat"] == found["streamed"] == found["response"] == found["responseStreamed"]
    assert found["chat"].startswith(ANSWER)
    assert found["call"][0] == "weather" and found["call"][1]["city"] in CITIES
    assert found["streamedCall"] and found["afterTheCall"] == "assistant"
    assert is_object(found["parsed"], ("tower", "bridge")) and is_object(found["responseParsed"], ("tower", "bridge"))


def test_anthropic(edge_url: str, tmp_path: Path) -> None:
    found = found_by("with_anthropic.py", edge_url, tmp_path)
    assert found["text"] == found["streamed"]
    assert found["text"].startswith(ANSWER)
    assert found["counted"] > 3
    assert found["call"][0] == "weather" and found["call"][1]["city"] in CITIES
    assert found["call deltas joined"][0] == found["call deltas joined"][1]
    assert found["after the call"] == "assistant"
    assert is_object(found["parsed"], ("tower", "bridge"))


def test_the_ai_sdk_of_vercel(edge_url: str, tmp_path: Path) -> None:
    providers = found_by("with_ai.mjs", edge_url, tmp_path)
    assert set(providers) == {"compatible", "chat", "responses", "messages"}
    for found in providers.values():
        assert found["text"] == found["streamed"]
        assert found["text"].startswith(ANSWER)
        assert is_object(found["place"], ("tower", "bridge"))
        assert len(found["cities"]) == 2 and set(found["cities"]) <= set(CITIES)
        assert "error" not in found["finish"]


def test_langchain(edge_url: str, tmp_path: Path) -> None:
    found = found_by("with_langchain.py", edge_url, tmp_path)
    assert found["chat"].startswith(ANSWER)
    assert found["chat"] == found["streamed"] == found["asynchronous"] == found["batch"][1]
    assert found["logprobs"] == found["tokens"] > 3
    assert found["text"] == found["text streamed"] != ""
    assert len(found["texts"]) == 2
    assert {found["json_schema"], found["function_calling"]} <= {"river", "sea"}
    for name in ("chat", "responses"):
        whole, streamed = found[f"{name} calls"]
        assert whole == streamed
        assert whole[0] == "weather" and whole[1]["city"] in CITIES
        assert found[f"{name} after the call"] == "ai"
    assert found["error"] == "context_length_exceeded"


def test_pydantic_ai(edge_url: str, tmp_path: Path) -> None:
    found = found_by("with_pydantic_ai.py", edge_url, tmp_path)
    for name in ("chat", "responses"):
        assert found[name] == found[f"{name} streamed"]
        assert found[name].startswith(ANSWER)
        assert is_object(found[f"{name} native"], ("tower", "bridge"))
        assert is_object(found[f"{name} tool"], ("tower", "bridge"))
        assert set(found[f"{name} cities"]) <= set(CITIES)
        assert found[f"{name} cities"] and isinstance(found[f"{name} tool round trip"], str)


def test_openai_agents_hand_off_and_use_a_tool(edge_url: str, tmp_path: Path) -> None:
    found = found_by("with_openai_agents.py", edge_url, tmp_path)
    for name in ("chat", "responses"):
        for one in (found[name], found[f"{name} streamed"]):
            agent, cities, kind = one
            assert (agent, kind) == ("Expert", "str")
            assert cities and set(cities) <= set(CITIES)
        assert [event for event in found[f"{name} events"] if event != "reasoning_item"] == [
            "handoff_call_item",
            "handoff_output_item",
            "tool_call_item",
            "tool_call_output_item",
            "message_output_item",
        ]


def test_guidance(edge_url: str, tmp_path: Path) -> None:
    found = found_by("with_guidance.py", edge_url, tmp_path)
    assert found["choice"] in ("yes", "no")
    assert len(found["digits"]) == 3 and found["digits"].isdigit()
    assert '"tall"' in found["structured"]


def test_outlines(edge_url: str, tmp_path: Path) -> None:
    found = found_by("with_outlines.py", edge_url, tmp_path)
    assert found["text"] == found["streamed"]
    assert found["text"].startswith(ANSWER)
    assert is_object(found["schema"], ("ruin", "palace")) and is_object(found["vllm schema"], ("ruin", "palace"))
    assert {found["choice"], found["grammar"]} <= {"yes", "no"}
    assert len(found["digits"]) == 3 and found["digits"].isdigit()


def test_instructor(edge_url: str, tmp_path: Path) -> None:
    found = found_by("with_instructor.py", edge_url, tmp_path, "litellm")
    assert len(found) == 6
    assert all(is_object(one, ("arch", "beam")) for one in found.values())
    assert all(found[name] == found[f"{name} parts"] for name in list(found)[::2])


def check_litellm(found: dict[str, Any]) -> None:
    """What its SDK found, directly or through its proxy."""
    for provider in ("openai", "hosted_vllm", "anthropic"):
        one = found[provider]
        assert one["chat"] == one["streamed"]
        assert one["chat"].startswith(ANSWER)
        assert one["call"][0] == "weather" and one["call"][1]["city"] in CITIES
        assert one["after the call"] == "assistant"
        assert is_object(one["schema"], ("hut", "lodge"))
    assert found["responses"].strip()


def test_litellm(edge_url: str, tmp_path: Path) -> None:
    check_litellm(found_by("with_litellm.py", edge_url, tmp_path, "litellm", "demo-edge"))


@pytest.fixture
def proxy_url(edge_url: str, tmp_path: Path) -> Iterator[str]:
    """litellm's proxy in front of the edge, which it calls `behind`."""
    model = {"model": "openai/demo-edge", "api_base": edge_url + "/v1", "api_key": "none"}
    open_to_all = {"dangerously_permit_weak_or_unset_master_key": True}  # as the edge behind it; on loopback
    config = {"model_list": [{"model_name": "behind", "litellm_params": model}], "general_settings": open_to_all}
    (tmp_path / "proxy.yaml").write_text(json.dumps(config))
    (port,) = free_ports(1)
    flags = ["--config", "proxy.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with running_client("litellm", "litellm", *flags, home=tmp_path) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(f"{url}/health/liveliness", process)
        yield url


def test_litellms_proxy_in_front(proxy_url: str, tmp_path: Path) -> None:
    check_litellm(found_by("with_litellm.py", proxy_url, tmp_path, "litellm", "behind"))
