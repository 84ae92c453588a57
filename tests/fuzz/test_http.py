"""Requests made from each server's own API document, by schemathesis: no failure, no reply that is not as documented.

Afterwards the server has its right answer for a plain question, and holds nothing of the requests.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from common.files.installation import PROJECT
from common.http.client import HTTPClient
from experiments.counters.scrape import page, totals
from tests.conftest import Servers
from tests.fuzz.budget import FOUND, HTTP_SECONDS

pytestmark = pytest.mark.timeout(HTTP_SECONDS * 4 + 600)

NOT_CHECKED = {
    "edge": "positive_data_acceptance",
    # vLLM's models take a number where a text should be, and much else.
    "cloud": "positive_data_acceptance,negative_data_rejection",
}
"""A JSON schema cannot say that a prompt must not be empty, or that one of two fields is needed."""
COUNTED = ("http_requests_in_flight", "admission_requests")
SEED_FILES = sorted((Path(__file__).parent / "seeds").glob("*.json"))
QUESTION = {"prompt": "<|user|>What is AI?<|assistant|>", "max_tokens": 12, "temperature": 0}


class Seed(msgspec.Struct, forbid_unknown_fields=True):
    """A request that once failed, and what should come."""

    server: str
    method: str
    path: str
    status: int
    body: Any = None
    reply_headers: dict[str, str] = {}


@asynccontextmanager
async def unharmed(client: HTTPClient) -> AsyncIterator[None]:
    """At the end the server must answer as before, and be idle."""
    before = await answer(client)
    yield
    assert await answer(client) == before
    await asyncio.wait_for(idle(client), 60)


async def answer(client: HTTPClient) -> str:
    reply: dict[str, Any] = await client.post("/v1/completions", QUESTION, dict)
    text: str = reply["choices"][0]["text"]
    return text


async def idle(client: HTTPClient) -> None:
    """Returns when the server works on nothing: no request in flight, no sequence lent, nothing admitted."""
    while await held(client):
        await asyncio.sleep(0.2)


async def held(client: HTTPClient) -> float:
    metrics = totals(await page(client), {name: f"edgecloud_{name}" for name in COUNTED})
    stats: dict[str, Any] = await client.get("/stats", dict)
    engine = stats.get("engine", {})
    own = 1  # the page itself is a request in flight
    return sum(metrics.values()) - own + float(engine.get("sequences_lent", 0) + engine.get("waiting", 0))


@pytest.mark.parametrize("name", ["edge", "cloud"])
async def test_requests_made_from_the_api_document_are_answered_as_documented(servers: Servers, name: str) -> None:
    client: HTTPClient = getattr(servers, name)
    async with unharmed(client):
        code, output = await schemathesis(client.base_url, NOT_CHECKED[name])
        await asyncio.to_thread((FOUND / f"{name}.txt").write_text, output)  # how many requests it made, and of what
    assert code == 0, output


async def schemathesis(url: str, unchecked: str) -> tuple[int | None, str]:
    """Exit code and output."""
    FOUND.mkdir(parents=True, exist_ok=True)
    command = ["run", url + "/openapi.json", "--max-time", str(HTTP_SECONDS), "--request-timeout", "120"]
    command += ["--checks", "all", "--exclude-checks", unchecked, "--continue-on-failure", "--no-color"]
    command += ["--generation-database", str(FOUND / "http"), "--output-sanitize", "false"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", *command),
        cwd=FOUND,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(PROJECT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize("seed", SEED_FILES, ids=lambda path: path.stem)
async def test_what_once_failed_is_answered(servers: Servers, seed: Path) -> None:
    case = msgspec.json.decode(await asyncio.to_thread(seed.read_bytes), type=Seed)
    client: HTTPClient = getattr(servers, case.server)
    url = client.base_url + case.path
    async with (
        unharmed(client),
        aiohttp.ClientSession() as session,
        session.request(case.method, url, json=case.body) as reply,
    ):
        assert reply.status == case.status, await reply.text()
        assert case.reply_headers.items() <= dict(reply.headers).items()
