"""A real edge on stock servers with OpenAI's API: `vllm serve`, and the llama-server of `make llama-server`."""

import asyncio
import contextlib
import json
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from benchmarks.serve_throughput import VLLM_SERVE, theirs
from cli.demo import free_ports
from common.config_cloud import CloudModelConfig
from common.files.installation import LLAMA_SERVER, PROJECT
from common.http.client import HTTPClient
from models.demo import CLOUD, EDGE
from tests.support.edge_in_process import edge_of

pytestmark = pytest.mark.real

MODEL = CLOUD.name
QUESTION = "What is a neural network?"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 48}
NEVER_SURE = {"confidence_threshold": 1.0, "product_threshold": 1.0}
LONG = {"max_tokens": 600, "ignore_eos": True}


@dataclass
class Stock:
    """A running server; `busy`: the line of its metrics that counts running requests."""

    url: str
    process: Process
    busy: str

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.post(self.url + path, json=body) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def running(self) -> float:
        async with aiohttp.ClientSession() as session, session.get(self.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(self.busy))


def command(kind: str, port: int, folder: Path) -> list[str]:
    if kind == "vllm":
        script = folder / "serve.py"
        script.write_text(VLLM_SERVE)
        return theirs(port, script, CloudModelConfig(path=str(CLOUD), dtype="float32"))
    if not LLAMA_SERVER.exists():
        pytest.skip("`make llama-server` has not been run")
    where = ["--host", "127.0.0.1", "--port", str(port), "--metrics", "-c", "4096", "-np", "4", "-t", "2"]
    return [str(LLAMA_SERVER), "-m", str(EDGE), *where]


@asynccontextmanager
async def started(kind: str, folder: Path) -> AsyncIterator[Stock]:
    (port,) = free_ports(1)
    words, url = command(kind, port, folder), f"http://127.0.0.1:{port}"
    with (folder / f"{kind}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *words, stdout=log, stderr=log, cwd=PROJECT, start_new_session=True
        )
    busy = {"vllm": "vllm:num_requests_running{", "llama": "llamacpp:requests_processing "}[kind]
    try:
        async with asyncio.timeout(240), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(url + "/health") as response:
                        if response.status == 200:
                            break
                assert process.returncode is None, (folder / f"{kind}.log").read_text()[-2000:]
                await asyncio.sleep(0.5)
        yield Stock(url, process, busy)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["vllm", "llama"])
async def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stock]:
    async with started(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@asynccontextmanager
async def edge_on(stock: Stock, *settings: str, **entry: str) -> AsyncIterator[HTTPClient]:
    clouds = json.dumps([{"url": f"{stock.url}/v1", "kind": "openai"} | entry])
    async with edge_of("http://localhost:8081", f"communication.clouds={clouds}", *settings) as client:
        yield client


async def ask(edge: HTTPClient, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.post("/v1/chat/completions", CHAT | fields, dict)
    return answer


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


async def gates(edge: HTTPClient, count: int) -> list[float]:
    """Thresholds that stop the edge's answer at places of its own, each later than the one before."""
    answer = await ask(edge, mode="edge_only", collaboration={"tokens": True})
    scores = [token["confidence"] for token in answer["choices"][0]["collaboration"]["tokens"]]
    falling = [score for at, score in enumerate(scores) if at and score < min(scores[:at])]
    assert falling, "the first token is not the least confident one"
    return [score + 1e-9 for score in falling[:count]]


@pytest.mark.parametrize("form", ["text", "message"])
async def test_an_answer_is_the_edges_up_to_the_gate_and_then_the_servers_own_continuation(
    stock: Stock, form: str
) -> None:
    """What the server itself says when it is asked to continue the same text."""
    async with edge_on(stock, continuation=form) as edge:
        for gate in await gates(edge, 3):
            answer = await ask(edge, confidence_threshold=gate, product_threshold=0, collaboration={"tokens": True})
            tokens = answer["choices"][0]["collaboration"]["tokens"]
            begun = "".join(token["text"] for token in tokens if token["source"] == "edge")
            rest = "".join(token["text"] for token in tokens if token["source"] == "cloud")
            assert begun
            assert rest
            assert [token["source"] for token in tokens] == sorted((t["source"] for t in tokens), reverse=True)
            left = CHAT["max_tokens"] - answer["collaboration"]["tokens"]["edge"]
            prompt = f"<|user|>{QUESTION}<|assistant|>{begun}"
            body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": left}
            own = await stock.post("/v1/completions", body | {"add_special_tokens": False})
            assert rest == own["choices"][0]["text"]
            report = answer["collaboration"]
            assert report["cloud_steps"] == own["usage"]["completion_tokens"]
            assert not report["degraded"]


async def test_the_form_is_found_out_and_the_context_is_the_servers(stock: Stock) -> None:
    async with edge_on(stock) as edge:
        answer = await ask(edge, **NEVER_SURE)
        assert answer["collaboration"]["tokens"]["cloud"]
        cards = {card["id"]: card for card in (await edge.get("/v1/models", dict))["data"]}
        assert cards["cloud"]["max_model_len"] == 1024
        alone = await stock.post("/v1/chat/completions", CHAT | {"model": MODEL})
        assert text_of(answer) == alone["choices"][0]["message"]["content"]
        assert text_of(await ask(edge, mode="cloud_only")) == text_of(answer)


async def test_it_streams(stock: Stock) -> None:
    async with edge_on(stock) as edge:
        body = CHAT | NEVER_SURE | {"stream": True}
        events = [json.loads(data) async for data in edge.events("/v1/chat/completions", body)]
        said = [event["choices"][0]["delta"].get("content") for event in events if event["choices"]]
        assert len([piece for piece in said if piece]) > 10


async def test_a_client_that_leaves_frees_the_server(stock: Stock) -> None:
    async with edge_on(stock) as edge:
        events = edge.events("/v1/chat/completions", CHAT | NEVER_SURE | LONG | {"stream": True})
        await anext(events)
        assert await stock.running() == 1
        await events.aclose()
        async with asyncio.timeout(10):
            while await stock.running():
                await asyncio.sleep(0.1)


async def test_a_whole_request_is_the_servers_own(stock: Stock) -> None:
    async with edge_on(stock) as edge:
        fields = {"mode": "cloud_only", "logprobs": True, "top_logprobs": 2}
        answer = await ask(edge, **fields)
        own = await stock.post("/v1/chat/completions", CHAT | {"model": MODEL} | {"logprobs": True, "top_logprobs": 2})
        assert text_of(answer) == own["choices"][0]["message"]["content"]
        assert len(answer["choices"][0]["logprobs"]["content"]) == answer["usage"]["completion_tokens"]
        assert answer["collaboration"]["tokens"]["cloud"] == own["usage"]["completion_tokens"]


async def test_an_answer_costs_what_the_server_counts_as_read_and_written(stock: Stock) -> None:
    prices = json.dumps({"prompt": 1.0, "completion": 10.0})
    async with edge_on(stock, f"communication.prices={prices}") as edge:
        (gate,) = await gates(edge, 1)
        gated = await ask(edge, confidence_threshold=gate, product_threshold=0)
        whole = await ask(edge, mode="cloud_only")
        assert (await ask(edge, mode="edge_only"))["collaboration"]["cost"] == 0
        own = await stock.post("/v1/chat/completions", CHAT | {"model": MODEL})
    read, written = own["usage"]["prompt_tokens"], own["usage"]["completion_tokens"]
    assert whole["collaboration"]["cost"] == pytest.approx((read + 10 * written) / 1e6)
    kept, rest = gated["collaboration"]["tokens"]["edge"], gated["collaboration"]["cloud_steps"]
    assert gated["collaboration"]["cost"] == pytest.approx((read + kept + 10 * rest) / 1e6)


async def test_an_answer_goes_on_at_the_edge_when_the_server_is_killed(stock: Stock) -> None:
    async with edge_on(stock) as edge:
        said, report = "", {}
        events = edge.events("/v1/chat/completions", CHAT | NEVER_SURE | LONG | {"stream": True, "max_tokens": 200})
        async for data in events:
            event = json.loads(data)
            report = event.get("collaboration", report)
            for choice in event["choices"]:
                said += choice["delta"].get("content") or ""
            if said and stock.process.returncode is None:
                os.killpg(stock.process.pid, signal.SIGKILL)
                await stock.process.wait()
        assert report["degraded"]
        assert report["tokens"]["cloud"] > 0
        assert report["tokens"]["edge"] > 0
        assert sum(report["tokens"].values()) == 200
        again = await ask(edge, **NEVER_SURE)
        assert again["collaboration"]["tokens"]["cloud"] == 0
        assert text_of(again) == text_of(await ask(edge, mode="edge_only"))
