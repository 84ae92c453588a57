"""Real clouds killed with SIGKILL at random moments of streams: the edge's answers are whole, token for token.

Beside each answer runs one without fallback: it must break, or the kill has shown nothing.
"""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cli.demo import free_ports
from cli.server_process import ServerProcess
from common.errors import EndpointError
from common.http.client import HTTPClient
from common.protocol.openai import Message
from common.protocol.tokenization import DetokenizeReply, TokenizeReply, TokenizeRequest
from common.types import DraftRequest, DraftResponse
from tests.support.edge_in_process import edge_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.long, pytest.mark.timeout(600)]

KILLS = 20
MAX_TOKENS = 64
SUBJECTS = ("deep learning", "quantum computing", "machine learning", "a neural network", "gravity")


class Clouds:
    """Real clouds, one after the other; the next one starts while the one before it is used up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._alive: list[ServerProcess] = []
        self._next: asyncio.Task[ServerProcess] | None = None

    async def next(self, last: bool) -> ServerProcess:
        self._next = self._next or asyncio.create_task(self._start())
        cloud = await self._next
        self._next = None if last else asyncio.create_task(self._start())
        return cloud

    async def _start(self) -> ServerProcess:
        (port,) = free_ports(1)
        settings = ["cloud.engine_args.kv_cache_memory_bytes=67108864", "cloud.model.dtype=float32"]
        flags = ["--host", "127.0.0.1", "--port", str(port), *(word for one in settings for word in ("--set", one))]
        log = self._folder / f"cloud-{port}.log"
        cloud = ServerProcess("cloud", "start_cloud.py", f"http://127.0.0.1:{port}", flags, log)
        self._alive.append(cloud)
        await cloud.start()
        await cloud.wait_ready()
        return cloud

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await asyncio.gather(*(cloud.stop() for cloud in self._alive))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def clouds(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clouds]:
    made = Clouds(tmp_path_factory.mktemp("clouds"))
    yield made
    await made.close()


async def streamed(edge: HTTPClient, prompt: list[int], seen: asyncio.Queue[None]) -> tuple[str, dict[str, Any]]:
    """Text and last event of an answer, every draft of which is verified; an item in `seen` for each event."""
    body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True, "max_draft_tokens": 1}
    body |= {"use_confidence_check": False, "stream_options": {"include_usage": True}}
    text, event = "", dict[str, Any]()
    async for data in edge.events("/v1/completions", body):
        event = json.loads(data)
        text += "".join(choice["text"] for choice in event["choices"])
        seen.put_nowait(None)
    return text, event


async def cloud_alone(url: str, prompt: list[int]) -> list[int]:
    body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "return_token_ids": True}
    async with HTTPClient(url) as client:
        reply: dict[str, Any] = await client.post("/v1/completions", body, dict)
    ids: list[int] = reply["choices"][0]["token_ids"]
    return ids


def kill(cloud: ServerProcess) -> None:
    """The server and all that it started, at once, without a word."""
    assert cloud._process is not None
    os.killpg(cloud._process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", range(KILLS))
async def test_a_cloud_killed_in_mid_stream_leaves_no_gap_and_no_double(clouds: Clouds, number: int) -> None:
    chance, cloud = random.Random(number), await clouds.next(last=number == KILLS - 1)
    async with edge_of(cloud.url) as edge, edge_of(cloud.url, "inference.fallback=false") as control:
        question = TokenizeRequest(messages=[Message(role="user", content=f"Explain {chance.choice(SUBJECTS)}")])
        prompt = (await edge.post("/tokenize", question, TokenizeReply)).tokens
        truth = await cloud_alone(cloud.url, prompt)
        seen: asyncio.Queue[None] = asyncio.Queue()
        answering = asyncio.create_task(streamed(edge, prompt, seen))
        breaking = asyncio.create_task(streamed(control, prompt, asyncio.Queue()))
        for _ in range(chance.randint(0, 8)):
            await seen.get()
        await asyncio.sleep(chance.uniform(0, 0.01))
        kill(cloud)
        text, last = await answering
        report, total = last["collaboration"], last["usage"]["completion_tokens"]
        assert report["degraded"], "it was killed in time"
        assert not report["lossless"]
        committed = truth[: total - report["tokens"]["edge"]]
        asked = DraftRequest(prompt_token_ids=prompt + committed, max_tokens=MAX_TOKENS - len(committed))
        continued = (await edge.post("/draft", asked, DraftResponse)).draft_token_ids
        assert total == len(committed) + len(continued)
        wanted = await edge.post("/detokenize", {"tokens": committed + continued}, DetokenizeReply)
        assert text == wanted.prompt
        with pytest.raises(EndpointError):
            await breaking
        print(f"killed after {len(committed)} tokens, {total} in all: {report['degraded']}")
