"""Compares the edge server's speed with a bare decoding loop on the same engine and with llama-server.

python -m benchmarks.edge_speed [--model FILE.gguf] [--config FILE] [--set KEY=VALUE] [--threads 1] [--tokens 64]

All have the same model, threads and prompts. In each repeat they take the same new prompts one after another: they read
one of 512 and one of 2,048 tokens, and write an answer behind one of 2,048, to one short prompt, then to eight at once.
A speed is in prompt tokens a second, or in tokens of the answers. A ratio is the edge's speed over the other's in the
same repeat: above 1 the edge is faster. The last two ratios are the confidence computation's share of the engine's
time. (`make llama-server` builds llama-server from the sources of the installed llama-cpp-python; without it that
comparison is left out.)
"""

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.progress import Progress

from benchmarks.random_gguf import SMOL_135M, WIDE_VOCABULARY, model_file
from benchmarks.setup.contenders import PEERS, STREAMS, ContenderTime, contenders
from benchmarks.setup.pair import edge_file
from benchmarks.setup.ratio_table import RequiredRatio, table
from cli import terminal
from cli.args import config_parser, run_program
from common.config_edge import EdgeModelConfig
from common.files.installation import LLAMA_SERVER, PROJECT
from common.http.client import HTTPClient
from edge.confidence import ConfidenceCalculator
from edge.engine.engine import EdgeEngine

TEXTS = PROJECT / "docs"
"""Prompts are pieces of this project's documentation: a model goes on with them, and does not end its answer soon."""


class SpeedTask(NamedTuple):
    """What all contenders do in turn: read, if `tokens` is 1, or write. `prompt`: tokens of each prompt.

    `reading`: the task that reads as long a prompt, whose time is no part of this one's.
    """

    name: str
    prompt: int
    streams: int
    tokens: int
    reading: str = ""

    def speed(self, took: ContenderTime, read_seconds: float = 0.0) -> float:
        """Tokens a second, of the prompt or of the answers; without `read_seconds` and the token that came with it."""
        if self.reading:
            return (took.tokens - 1) / max(took.seconds - read_seconds, 1e-9)
        return (self.prompt if self.tokens == 1 else took.tokens) / took.seconds


def speed_tasks(tokens: int) -> list[SpeedTask]:
    reading = [SpeedTask(f"read {length:,}", length, 1, 1) for length in (512, 2048)]
    behind = SpeedTask(BEHIND, 2048, 1, tokens, reading[-1].name)
    return [
        *reading,
        behind,
        SpeedTask("1 stream", 32, 1, tokens),
        SpeedTask(f"{STREAMS} streams", 32, STREAMS, tokens),
    ]


BEHIND = "1 stream behind 2,048"
REQUIRED = {
    "bare": {"1 stream": 0.90, f"{STREAMS} streams": 0.85},
    **{
        peer: {"read 512": 0.95, "read 2,048": 0.95, BEHIND: 0.95, "1 stream": 0.95, f"{STREAMS} streams": 0.95}
        for peer in PEERS
    },
}
"""The lowest ratio wanted for each peer and task."""


async def text_tokens(edge_url: str) -> list[int]:
    """The documentation in the model's tokens."""
    text = "\n".join(path.read_text() for path in sorted(TEXTS.glob("*.md")))
    async with HTTPClient(edge_url) as edge:
        reply = await edge.post("/tokenize", {"prompt": text, "add_special_tokens": False}, dict[str, Any])
    return list(reply["tokens"])


async def speed(model: Path, args: argparse.Namespace, bar: Progress) -> list[RequiredRatio]:
    """The edge's speed over each contender's, in every task and repeat."""
    source, tasks = random.Random(1), speed_tasks(args.tokens)
    speeds: dict[tuple[str, str], list[float]] = {}
    seconds: dict[tuple[str, str], float] = {}
    context = max(task.prompt + task.tokens for task in tasks) + 64
    async with AsyncExitStack() as stack:
        found, edge_url = await contenders(stack, model, args, context)
        text = await text_tokens(edge_url)
        rounds = list(itertools.product(range(args.repeats + 1), tasks))
        for repeat, task in bar.track(rounds, description="interleaved"):
            starts = [source.randrange(len(text) - task.prompt) for _ in range(task.streams)]
            prompts = [text[start : start + task.prompt] for start in starts]
            for name, answer in found.items():
                took = await answer(prompts, task.tokens)
                seconds[task.name, name] = took.seconds
                if repeat:  # the first is not counted: warm-up
                    each = task.speed(took, seconds.get((task.reading, name), 0.0))
                    speeds.setdefault((task.name, name), []).append(each)
    for (task_name, name), measured in speeds.items():
        bar.console.print(f"{task_name}, {name}: {statistics.median(measured):.1f} tokens/s")
    return ratios(speeds)


def ratios(speeds: dict[tuple[str, str], list[float]]) -> list[RequiredRatio]:
    """The edge's speeds, by task and contender, over those of each contender that took part."""
    rows = []
    for peer, wanted in REQUIRED.items():
        for task, least in wanted.items():
            if (task, peer) in speeds:
                pairs = zip(speeds[task, "edge"], speeds[task, peer], strict=True)
                rows.append(RequiredRatio(f"{peer}, {task}", least, [edge / other for edge, other in pairs]))
    return rows


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
    config = EdgeModelConfig(path=str(model), context_length=1024, threads=args.threads, sequences=streams)
    async with EdgeEngine(config, confidence=timed) as engine, AsyncExitStack() as stack:
        leases = [await stack.enter_async_context(engine.sequence(reuse=False)) for _ in range(streams)]
        for repeat in range(args.repeats + 1):
            spent, began = 0.0, time.perf_counter()
            await asyncio.gather(*(lease.draft([100 + i + repeat], 32) for i, lease in enumerate(leases)))
            shares.append(spent / (time.perf_counter() - began))
    name = f"F1's share, V 150,000, batch {streams}"
    return RequiredRatio(name, 0.05, shares[1:], at_most=True)


async def main() -> None:
    parser = config_parser("Compare the edge server's speed with a bare loop and with llama-server.")
    parser.add_argument(
        "--model",
        type=Path,
        help="GGUF file (default: the config's; in place of the demo's a random one of SmolLM2-135M's shape)",
    )
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a written answer (default 64)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each contender (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of llama.cpp for every contender (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all ratios to this file")
    args = parser.parse_args()
    console = terminal.console()
    if not LLAMA_SERVER.exists():
        console.print(f"{LLAMA_SERVER} is missing, so it is not compared; `make llama-server` builds it")
    wide = model_file(WIDE_VOCABULARY)
    with Progress(console=console) as bar:
        rows = await speed(args.model or edge_file(args) or model_file(SMOL_135M), args, bar)
    for streams in (1, STREAMS):
        rows.append(await share_of_confidence(wide, args, streams))
    console.print(table(rows, "Edge server: its speed over the other's, and F1's share of its time"))
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))


if __name__ == "__main__":
    sys.exit(run_program(main()))
