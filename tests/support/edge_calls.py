"""Requests to a real edge server that several test files vary and send."""

import io
import json
from typing import Any

import aiohttp

from tests.conftest import Edge

ASKED = "<|user|>What is AI?<|assistant|>"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is AI?"}], "temperature": 0}
PLAIN: dict[str, Any] = {"prompt": ASKED, "temperature": 0, "max_tokens": 24}


async def completion(edge: Edge, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.http.post("/v1/completions", PLAIN | fields, dict)
    return answer


async def chat(edge: Edge, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.http.post("/v1/chat/completions", CHAT | fields, dict)
    return answer


async def streamed(edge: Edge, path: str, **fields: Any) -> list[dict[str, Any]]:
    base = CHAT if "chat" in path else PLAIN
    return [json.loads(event) async for event in edge.http.events(path, base | {"stream": True} | fields)]


async def refused(edge: Edge, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    data = io.BytesIO(json.dumps(body).encode())
    async with aiohttp.ClientSession() as session, session.post(edge.url + path, data=data) as response:
        answer: dict[str, Any] = await response.json()
        return response.status, answer["error"]


def counted(usage: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on earlier requests: the prompt's tokens whose KV was found."""
    return {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


def texts(answer: dict[str, Any]) -> list[str]:
    return [c["text"] if "text" in c else c["message"]["content"] for c in answer["choices"]]
