"""What benchmarks.edge_speed compares: a bare decoding loop, the edge server and llama-server, on one GGUF file."""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from cli.demo import free_ports
from cli.server_process import EDGE
from common.config_edge import EdgeModelConfig
from common.errors import StartError
from common.files.installation import LLAMA_SERVER, logs, module_environment
from edge.llama.batch import SequenceTokens
from edge.llama.model import CHUNK, Llama

STREAMS = 8
PEERS = {"llama-server -fa off": ("-fa", "off"), "llama-server": ()}
"""llama-server with the edge's attention kernels (see edge/llama/model.py), and with its defaults; its options."""


class ContenderTime(NamedTuple):
    """Seconds from the first request to the last token, and the tokens of all answers together."""

    seconds: float
    tokens: int


Contender = Callable[[list[list[int]], int], Awaitable[ContenderTime]]
"""Answers all prompts at the same time, each with so many tokens at most."""


class BareLoop:
    """Greedy decoding with nothing around it: the C API, one batch a step, an argmax."""

    def __init__(self, model: Path, threads: int, context: int) -> None:
        self._llama = Llama(
            EdgeModelConfig(
                path=str(model), context_length=context, threads=threads, threads_batch=threads, sequences=STREAMS
            )
        )

    async def answer(self, prompts: list[list[int]], tokens: int) -> ContenderTime:
        llama = self._llama
        began = time.perf_counter()
        pending = [self._read(i, prompt) for i, prompt in enumerate(prompts)]
        for _ in range(tokens):
            rows = llama.decode([SequenceTokens(i, ids, 1) for i, ids in enumerate(pending)])
            assert rows is not None
            pending = [[token] for token in rows.argmax(axis=-1).tolist()]
        seconds = time.perf_counter() - began
        for sequence in range(len(prompts)):
            llama.rewind(sequence, 0)
        return ContenderTime(seconds, len(prompts) * tokens)

    def _read(self, sequence: int, prompt: list[int]) -> list[int]:
        """Decodes whole steps of the prompt; returns its rest, which all sequences' first common step reads."""
        while len(prompt) > CHUNK // STREAMS:
            self._llama.decode([SequenceTokens(sequence, prompt[: min(CHUNK, len(prompt) - 1)], 0)])
            prompt = prompt[min(CHUNK, len(prompt) - 1) :]
        return prompt

    def close(self) -> None:
        self._llama.free()


class CompletionServer:
    """Streams completions from a server with OpenAI's API; `extra` must switch its reuse of earlier KV off."""

    def __init__(self, session: aiohttp.ClientSession, url: str, extra: dict[str, Any]) -> None:
        self._session = session
        self._url = url + "/v1/completions"
        self._body = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **extra}

    async def answer(self, prompts: list[list[int]], tokens: int) -> ContenderTime:
        began = time.perf_counter()
        drawn = await asyncio.gather(*(self._one(prompt, tokens) for prompt in prompts))
        return ContenderTime(time.perf_counter() - began, sum(drawn))

    async def _one(self, prompt: list[int], tokens: int) -> int:
        body = {**self._body, "prompt": prompt, "max_tokens": tokens}
        last = b""
        async with self._session.post(self._url, json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    last = line
        usage = msgspec.json.decode(last[6:])["usage"]
        assert usage["prompt_tokens"] == len(prompt), f"{usage['prompt_tokens']} prompt tokens, not {len(prompt)}"
        return int(usage["completion_tokens"])


@asynccontextmanager
async def process(name: str, *command: str) -> AsyncIterator[None]:
    log = (logs() / f"benchmark-{name.replace(' ', '')}.log").open("wb")
    with log:
        started = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=module_environment())
    try:
        yield
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()


async def ready(session: aiohttp.ClientSession, url: str) -> None:
    for _ in range(1200):
        try:
            async with session.get(url) as response:
                if response.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.1)
    raise StartError(f"{url} does not answer; see logs/benchmark-*.log")


async def contenders(
    stack: AsyncExitStack, model: Path, args: argparse.Namespace, context: int
) -> tuple[dict[str, Contender], str]:
    """The bare loop, the edge and, if it was built, llama-server, each with its own copy of the model; the edge's URL.

    `context`: tokens that each of STREAMS sequences has room for.
    """
    logs().mkdir(parents=True, exist_ok=True)
    edge_port, *peer_ports = free_ports(1 + len(PEERS))
    session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()))
    bare = BareLoop(model, args.threads, context)
    stack.callback(bare.close)
    settings = {"threads": args.threads, "threads_batch": args.threads, "sequences": STREAMS, "context_length": context}
    flags = [part for key, value in settings.items() for part in ("--set", f"edge.model.{key}={value}")]
    start = [sys.executable, "-P", "-m", EDGE, "--host", "127.0.0.1", "--port", str(edge_port)]
    await stack.enter_async_context(process("edge", *start, "--model", str(model), *flags))
    edge_url = f"http://127.0.0.1:{edge_port}"
    await ready(session, edge_url + "/ready")
    edge = CompletionServer(session, edge_url, {"mode": "edge_only", "use_kv_cache": False})
    found: dict[str, Contender] = {"bare": bare.answer, "edge": edge.answer}
    if LLAMA_SERVER.exists():
        options = ["-m", str(model), "-c", str(context * STREAMS), "-np", str(STREAMS)]
        options += ["-t", str(args.threads), "-tb", str(args.threads)]
        for (name, attention), port in zip(PEERS.items(), peer_ports, strict=True):
            await stack.enter_async_context(process(name, str(LLAMA_SERVER), *options, *attention, "--port", str(port)))
            peer_url = f"http://127.0.0.1:{port}"
            await ready(session, peer_url + "/health")
            found[name] = CompletionServer(session, peer_url, {"cache_prompt": False}).answer
    return found, edge_url
