"""Compares the speed of lossless collaboration with the cloud alone, on a pair of servers of its own.

python -m benchmarks.lossless_speed [--config FILE] [--set KEY=VALUE] [--data FILE] [--prompts 8] [--repeats 5]

Each prompt is answered by the cloud server itself and through the edge without the confidence check, one right after
the other, in alternating order. The speed-up is the median time of the cloud over the median time of the edge: above 1
collaboration is faster. `--data editing` measures texts that are mostly repeated, `--set inference.lookup=false` beside
it what looking them up brings.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace
from rich.progress import Progress
from rich.table import Table

from cli import terminal
from cli.args import config_parser, count, load_config, run_program
from cli.demo import demo_servers
from common.config_schema import HttpClientConfig
from common.http.client import HTTPClient
from common.protocol.openai import ChatRequest, Message
from common.types import Collaboration
from experiments.questions import datasets
from models.corpus import questions as corpus


class ChatChoice(msgspec.Struct):
    """The fields of a choice that this benchmark reads."""

    message: Message
    finish_reason: str


class Reply(msgspec.Struct):
    """The fields of a chat completion that this benchmark reads."""

    choices: list[ChatChoice]
    usage: dict[str, Any]
    collaboration: Collaboration | None = None


@dataclass
class PromptTimes:
    """What was measured for one prompt over the repeats: seconds of the cloud alone and of lossless collaboration."""

    prompt: str
    cloud: list[float] = field(default_factory=list)
    lossless: list[float] = field(default_factory=list)
    acceptance: float = 0.0
    cloud_steps: int = 0
    """Of lossless collaboration."""
    max_tokens: int = 64
    tokens: int = 0
    same: bool = True

    @property
    def speed_up(self) -> float:
        return statistics.median(self.cloud) / statistics.median(self.lossless)


async def timed(client: HTTPClient, request: ChatRequest) -> tuple[float, Reply]:
    """Seconds of a whole answer, and the answer."""
    started = time.perf_counter()
    reply = await client.post("/v1/chat/completions", request, Reply)
    return time.perf_counter() - started, reply


async def measure(edge: HTTPClient, cloud: HTTPClient, row: PromptTimes) -> None:
    """One answer of each; the order of the two changes with every repeat."""
    question = [Message(role="user", content=row.prompt)]
    alone = ChatRequest(messages=question, max_tokens=row.max_tokens, temperature=0)
    together = replace(alone, use_confidence_check=False)
    both = [(cloud, alone, row.cloud), (edge, together, row.lossless)]
    texts = []
    for client, request, seconds in both if len(row.cloud) % 2 else reversed(both):
        spent, reply = await timed(client, request)
        seconds.append(spent)
        texts.append(reply.choices[0].message.text)
        row.tokens = reply.usage["completion_tokens"]
        if reply.collaboration:
            row.acceptance = reply.collaboration.acceptance_rate or 0.0
            row.cloud_steps = reply.collaboration.cloud_steps
    row.same &= texts[0] == texts[1]


async def main() -> None:
    parser = config_parser("Compare the speed of lossless collaboration with the cloud alone.")
    parser.add_argument("--prompts", type=count, default=8, help="number of prompts (default 8)")
    parser.add_argument("--data", metavar="FILE|NAME", help="prompts (default: the demo's; for other models: general)")
    parser.add_argument("--tokens", type=count, default=64, help="longest answer, in tokens (default 64)")
    parser.add_argument("--repeats", type=int, default=5, help="answers of each to each prompt (default 5)")
    args = parser.parse_args()
    console = terminal.console()
    rows = [PromptTimes(prompt, max_tokens=args.tokens) for prompt in prompts_of(args)]
    plain = HttpClientConfig(timeout=600.0, max_retries=0, optimized=True)
    began = time.perf_counter()
    async with demo_servers(args, console.print) as (edge_url, cloud_url):
        console.print(f"both servers ready after {time.perf_counter() - began:.1f} s")
        async with HTTPClient(edge_url, plain) as edge, HTTPClient(cloud_url, plain) as cloud:
            for row in rows:  # warm-up, not counted
                await measure(edge, cloud, PromptTimes(row.prompt, max_tokens=args.tokens))
            with Progress(console=console) as bar:
                for _ in bar.track(range(args.repeats), description="interleaved repeats"):
                    for row in rows:
                        await measure(edge, cloud, row)
    console.print(table(rows))


def prompts_of(args: argparse.Namespace) -> list[str]:
    """The prompts; those of the demo corpus have answers of at least 64 tokens."""
    if data := datasets.spec_for(args.data, load_config(args)):
        return [question.prompt for question in datasets.load(data, args.prompts, seed=0).questions]
    long = [f for f in corpus.facts() if f.kind == "explanation"][:: max(1, 80 // args.prompts)][: args.prompts]
    return [f"Explain {fact.names[0]}" for fact in long]


def table(rows: list[PromptTimes]) -> Table:
    result = Table(
        title=f"Greedy answers of up to {rows[0].max_tokens} tokens: median seconds of the cloud alone and of lossless",
        title_justify="left",
    )
    result.add_column("prompt", max_width=20)
    for name in ("tokens", "cloud", "lossless", "speed-up", "accepted", "steps/token", "same"):
        result.add_column(name, justify="right", min_width=len(name))
    for row in rows:
        cloud, lossless = statistics.median(row.cloud), statistics.median(row.lossless)
        cells = f"{cloud:.3f}", f"{lossless:.3f}", f"{row.speed_up:.2f}", f"{row.acceptance:.2f}"
        steps = f"{row.cloud_steps / max(1, row.tokens):.2f}"
        result.add_row(row.prompt, str(row.tokens), *cells, steps, "yes" if row.same else "no")
    result.add_section()
    result.add_row("median", "", "", "", f"{statistics.median(r.speed_up for r in rows):.2f}", "", "", "")
    return result


if __name__ == "__main__":
    sys.exit(run_program(main()))
