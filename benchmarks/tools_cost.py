"""Measures what tools cost: time to the first token and tokens a second, beside the same prompt without them.

python -m benchmarks.tools_cost [--config FILE] [--set KEY=VALUE] [--repeats 3] [--tokens 48]

Each question is asked twice in a row, in alternating order: as a chat with three tools, and as a completion of the very
tokens that the chat template made of it. So the model reads and writes the same, and the difference is what looking for
calls costs. An answer that begins as a call might is held back until that is clear: its first text comes later, the
rest faster. Nothing is kept between requests. The edge answers alone, with the model of the config: one whose template
knows tools, such as that of config/presets/qwen2.5-coder.yaml.
"""

import argparse
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
from rich.progress import Progress
from rich.table import Table

from cli import terminal
from cli.args import config_parser, count, run_program
from cli.demo import config_flags, free_ports
from cli.server_process import ServerProcess
from cli.supervisor import Supervisor
from common.errors import StartError
from common.files.installation import PROJECT
from common.http.client import HTTPClient
from experiments.harness import statistics

QUESTIONS = (
    "Tell me about the sea.",
    "Explain what a mutex is.",
    "Write a poem about bread.",
    "Why is the sky blue?",
    "Write a function that adds two numbers.",
    "What makes a good test?",
    "Describe a small town in winter.",
    "How does a bicycle stay upright?",
)
"""Answered in words: a call is shown when it is complete, so that its first token would be its last."""


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    tool("get_weather", "The weather of a city.", city="string"),
    tool("multiply", "The product of two numbers.", a="integer", b="integer"),
    tool("send_message", "Sends a person a message.", to="string", text="string"),
]


class TimedStream(NamedTuple):
    """Seconds to the first text, seconds from there to the end, tokens of the answer."""

    first: float
    rest: float
    tokens: int


async def main() -> None:
    parser = config_parser("Measure what tools cost an answer.")
    parser.add_argument("--repeats", type=count, default=3, help="times that every question is asked (default 3)")
    parser.add_argument("--tokens", type=count, default=48, help="tokens of an answer (default 48)")
    args = parser.parse_args()
    asked, pairs = QUESTIONS * args.repeats, list[tuple[TimedStream, TimedStream]]()
    with Progress() as progress:
        async with running_edge(args) as edge:
            for at, question in enumerate(progress.track(asked, description="with and without tools")):
                pairs.append(await both(edge, question, args.tokens, tools_first=at % 2 == 0))
    terminal.console().print(table(pairs))


@asynccontextmanager
async def running_edge(args: argparse.Namespace) -> AsyncIterator[HTTPClient]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    flags = [*config_flags(args), "--host", "127.0.0.1", "--port", str(port)]
    flags += ["--set", "communication.cloud_endpoint=http://127.0.0.1:1"]
    server = ServerProcess("edge", "start_edge.py", url, flags, PROJECT / "logs" / "tools-cost.log")
    async with Supervisor([server], lambda _: None).running(), HTTPClient(url) as edge:
        yield edge


async def both(edge: HTTPClient, question: str, tokens: int, tools_first: bool) -> tuple[TimedStream, TimedStream]:
    """The question with tools, and the same prompt without; neighbours in time."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "tools": TOOLS}
    prompt = (await edge.post("/tokenize", chat, dict))["tokens"]
    if len(prompt) == len((await edge.post("/tokenize", {"messages": chat["messages"]}, dict))["tokens"]):
        raise StartError("this model's chat template knows no tools: name a --config with one that does")
    made = dict[bool, TimedStream]()
    for with_tools in (tools_first, not tools_first):
        path, body = ("/v1/chat/completions", chat) if with_tools else ("/v1/completions", {"prompt": prompt})
        made[with_tools] = await timed(edge, path, {**body, "max_tokens": tokens})
    return made[True], made[False]


async def timed(edge: HTTPClient, path: str, body: dict[str, Any]) -> TimedStream:
    own = {"mode": "edge_only", "temperature": 0, "ignore_eos": True, "use_kv_cache": False}
    own |= {"stream": True, "stream_options": {"include_usage": True}}
    first, written, began = 0.0, 0, time.perf_counter()
    async for event in edge.events(path, body | own):
        if event == b"[DONE]":
            break
        reply = msgspec.json.decode(event)
        first = first or (time.perf_counter() - began if any(map(has_text, reply["choices"])) else 0.0)
        written = (reply.get("usage") or {}).get("completion_tokens", written)
    return TimedStream(first, time.perf_counter() - began - first, written)


def has_text(choice: dict[str, Any]) -> bool:
    return bool(choice.get("text") or choice.get("delta", {}).get("content"))


def table(pairs: Sequence[tuple[TimedStream, TimedStream]]) -> Table:
    """Ratios with tools over without; for the first token a ratio of rates, so that above 1 is faster in all rows."""
    rows: dict[str, list[statistics.Pair]] = {
        "time of the whole answer, without over with": [
            statistics.Pair(1, a.first + a.rest, 1, b.first + b.rest) for a, b in pairs
        ],
        "time to the first token, without over with": [statistics.Pair(1, a.first, 1, b.first) for a, b in pairs],
        "tokens a second after it, with over without": [
            statistics.Pair(a.tokens, a.rest, b.tokens, b.rest) for a, b in pairs
        ],
    }
    found = Table(title=f"What tools cost: {len(pairs)} pairs of answers", title_justify="left")
    for head in ("ratio", "median", "of all", "95 % interval"):
        found.add_column(head)
    for name, measured in rows.items():
        all_of_them, middle = statistics.speed_ratio(measured), statistics.typical_ratio(measured)
        span = f"{all_of_them.low:.3f} to {all_of_them.high:.3f}"
        found.add_row(name, f"{middle:.3f}", f"{all_of_them.value:.3f}", span)
    return found


if __name__ == "__main__":
    sys.exit(run_program(main()))
