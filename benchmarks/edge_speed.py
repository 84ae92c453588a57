"""Compares the edge server's speed with a bare decoding loop on the same engine and with llama-server.

python -m benchmarks.edge_speed [--tokens 64] [--repeats 5] [--threads 1] [--model FILE.gguf] [--json FILE]

All have the same model, threads and prompts. In each repeat they answer the same new prompts one after another, first
one prompt, then eight at once. A ratio is the edge's speed over the other's in the same repeat: above 1 the edge is
faster. The last two ratios are the confidence computation's share of the engine's time.
(`make llama-server` builds llama-server from the sources of the installed llama-cpp-python; without it that comparison
is left out.)
"""

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rich.progress import Progress

from benchmarks.random_gguf import CACHE, SMOL_135M, WIDE_VOCABULARY, model_file
from benchmarks.ratio_table import RequiredRatio, table
from cli import terminal
from cli.args import plain_parser, run_program
from cli.demo import free_ports
from cli.supervisor import PROJECT
from common.config_edge import EdgeModelConfig
from common.errors import StartError
from edge.confidence import ConfidenceCalculator
from edge.engine.engine import EdgeEngine
from edge.llama.batch import SequenceTokens
from edge.llama.model import Llama

PEER = CACHE / "llama-server"
PROMPT_TOKENS = 32
STREAMS = 8
CONTEXT = 1024
PEERS = {"llama-server -fa off": ("-fa", "off"), "llama-server": ()}
"""llama-server with the edge's attention kernels (see edge/llama/model.py), and with its defaults; its options."""

Contender = Callable[[list[list[int]]], Awaitable[float]]
"""Answers all prompts at the same time; returns the seconds that this took."""


class BareLoop:
    """Greedy decoding with nothing around it: the C API, one batch a step, an argmax."""

    def __init__(self, model: Path, threads: int, tokens: int) -> None:
        self._llama = Llama(
            EdgeModelConfig(
                path=str(model), context_length=CONTEXT, threads=threads, threads_batch=threads, sequences=STREAMS
            )
        )
        self._tokens = tokens

    async def answer(self, prompts: list[list[int]]) -> float:
        llama = self._llama
        began = time.perf_counter()
        pending = prompts
        for _ in range(self._tokens):
            rows = llama.decode([SequenceTokens(i, ids, 1) for i, ids in enumerate(pending)])
            assert rows is not None
            pending = [[token] for token in rows.argmax(axis=-1).tolist()]
        seconds = time.perf_counter() - began
        for sequence in range(len(prompts)):
            llama.rewind(sequence, 0)
        return seconds

    def close(self) -> None:
        self._llama.free()


class CompletionServer:
    """Streams completions from a server with OpenAI's API; `extra` must switch its reuse of earlier KV off."""

    def __init__(self, session: aiohttp.ClientSession, url: str, tokens: int, extra: dict[str, Any]) -> None:
        self._session = session
        self._url = url + "/v1/completions"
        self._body = {"max_tokens": tokens, "temperature": 0, "stream": True, **extra}
        self._tokens = tokens

    async def answer(self, prompts: list[list[int]]) -> float:
        began = time.perf_counter()
        await asyncio.gather(*map(self._one, prompts))
        return time.perf_counter() - began

    async def _one(self, prompt: list[int]) -> None:
        body = {**self._body, "prompt": prompt, "stream_options": {"include_usage": True}}
        last = b""
        async with self._session.post(self._url, json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    last = line
        drawn = msgspec.json.decode(last[6:])["usage"]["completion_tokens"]
        assert drawn == self._tokens, f"{drawn} tokens instead of {self._tokens}"


@asynccontextmanager
async def process(name: str, *command: str) -> AsyncIterator[None]:
    log = (PROJECT / "logs" / f"benchmark-{name.replace(' ', '')}.log").open("wb")
    with log:
        started = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        yield
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()


async def ready(session: aiohttp.ClientSession, url: str) -> None:
    for _ in range(600):
        try:
            async with session.get(url) as response:
                if response.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.1)
    raise StartError(f"{url} does not answer; see logs/benchmark-*.log")


async def contenders(stack: AsyncExitStack, model: Path, args: argparse.Namespace) -> dict[str, Contender]:
    """The bare loop, the edge and, if it was built, llama-server, each with its own copy of the model."""
    (PROJECT / "logs").mkdir(exist_ok=True)
    edge_port, *peer_ports = free_ports(1 + len(PEERS))
    session = await stack.enter_async_context(aiohttp.ClientSession())
    bare = BareLoop(model, args.threads, args.tokens)
    stack.callback(bare.close)
    threads = {"threads": args.threads, "threads_batch": args.threads}
    settings = {**threads, "sequences": STREAMS, "context_length": CONTEXT}
    flags = [part for key, value in settings.items() for part in ("--set", f"edge.model.{key}={value}")]
    start = [sys.executable, str(PROJECT / "start_edge.py"), "--host", "127.0.0.1", "--port", str(edge_port)]
    await stack.enter_async_context(process("edge", *start, "--model", str(model), *flags))
    edge_url = f"http://127.0.0.1:{edge_port}"
    await ready(session, edge_url + "/ready")
    edge = CompletionServer(session, edge_url, args.tokens, {"mode": "edge_only", "use_kv_cache": False})
    found: dict[str, Contender] = {"bare": bare.answer, "edge": edge.answer}
    if PEER.exists():
        options = ["-m", str(model), "-c", str(CONTEXT * STREAMS), "-np", str(STREAMS)]
        options += ["-t", str(args.threads), "-tb", str(args.threads)]
        for (name, attention), port in zip(PEERS.items(), peer_ports, strict=True):
            await stack.enter_async_context(process(name, str(PEER), *options, *attention, "--port", str(port)))
            peer_url = f"http://127.0.0.1:{port}"
            await ready(session, peer_url + "/health")
            found[name] = CompletionServer(session, peer_url, args.tokens, {"cache_prompt": False}).answer
    return found


async def speed(model: Path, args: argparse.Namespace, bar: Progress) -> list[RequiredRatio]:
    """The edge's speed over each contender's, for one stream and for eight, in every repeat."""
    source = random.Random(1)
    seconds: dict[tuple[str, int], list[float]] = {}
    async with AsyncExitStack() as stack:
        found = await contenders(stack, model, args)
        rounds = range(args.repeats + 1)
        for repeat, streams in bar.track(list(itertools.product(rounds, (1, STREAMS))), description="interleaved"):
            prompts = [[source.randrange(100, 4000) for _ in range(PROMPT_TOKENS)] for _ in range(streams)]
            for name, answer in found.items():
                took = await answer(prompts)
                if repeat:  # the first is not counted: warm-up
                    seconds.setdefault((name, streams), []).append(took)
    for (name, streams), all_seconds in seconds.items():
        rate = streams * args.tokens / statistics.median(all_seconds)
        bar.console.print(f"{name}, {streams} stream{'s' * (streams > 1)}: {rate:.1f} tokens/s")
    ratios = []
    for peer, streams, wanted in (
        ("bare", 1, 0.90),
        ("bare", 8, 0.85),
        *((name, 1, 0.95) for name in PEERS),
        *((name, 8, 1.0) for name in PEERS),
    ):
        if (peer, streams) in seconds:
            pairs = zip(seconds[peer, streams], seconds["edge", streams], strict=True)
            ratios.append(
                RequiredRatio(f"{peer}, {streams} stream{'s' * (streams > 1)}", wanted, [p / e for p, e in pairs])
            )
    return ratios


async def share_of_confidence(model: Path, args: argparse.Namespace, streams: int) -> RequiredRatio:
    """The share of the engine's time that F1 and token probabilities take, with a vocabulary of 150,000."""
    calculator = ConfidenceCalculator()
    spent = 0.0

    def timed(logits: Any, chosen: Any) -> Any:
        nonlocal spent
        began = time.perf_counter()
        result = calculator.of_batch(logits, chosen)
        spent += time.perf_counter() - began
        return result

    shares = []
    config = EdgeModelConfig(
        path=str(model),
        context_length=CONTEXT,
        threads=args.threads,
        threads_batch=args.threads,
        sequences=streams,
    )
    async with EdgeEngine(config, confidence=timed) as engine, AsyncExitStack() as stack:
        leases = [await stack.enter_async_context(engine.sequence(reuse=False)) for _ in range(streams)]
        for repeat in range(args.repeats + 1):
            spent, began = 0.0, time.perf_counter()
            await asyncio.gather(*(lease.draft([100 + i + repeat], 32) for i, lease in enumerate(leases)))
            shares.append(spent / (time.perf_counter() - began))
    name = f"F1's share, V 150,000, batch {streams}"
    return RequiredRatio(name, 0.05, shares[1:], at_most=True)


async def main() -> None:
    parser = plain_parser("Compare the edge server's speed with a bare loop and with llama-server.")
    parser.add_argument("--model", type=Path, help="GGUF file (default: a random one of SmolLM2-135M's shape)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default 64)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each contender (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of llama.cpp for every contender (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all ratios to this file")
    args = parser.parse_args()
    console = terminal.console()
    if not PEER.exists():
        console.print(f"{PEER} is missing, so it is not compared; `make llama-server` builds it")
    wide = model_file(WIDE_VOCABULARY)
    with Progress(console=console) as bar:
        rows = await speed(args.model or model_file(SMOL_135M), args, bar)
    for streams in (1, STREAMS):
        rows.append(await share_of_confidence(wide, args, streams))
    console.print(table(rows, "Edge server: its speed over the other's, and F1's share of its time"))
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))


if __name__ == "__main__":
    sys.exit(run_program(main()))
