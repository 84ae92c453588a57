"""Every way of answering over many networks and loads, in one run, interleaved: speed, bytes, work, and exactness.

    python -m experiments.network_sweep [--round-trips 0,14,50,100] [--uplinks 10,20,80] [--clients 1,4,16]
        [--ways edge,cloud,rounds,...] [--prompts 200] [--repeats 1] [--minutes 15] [--resume] [--output DIR]

In the minutes given it goes as far as it can: a few questions in every cell, then more; `--resume` goes on from there.
The network is a proxy between edge and cloud; clients are beside the edge. One pair of servers serves the whole sweep
(with F4 off: a second edge), the cloud in float32, so that every lossless answer must be cloud only's, text for text.

Caches are made equally warm: before each pass every question is asked once of the cloud itself and once of each edge,
for one token, so that all ways find the same prompts in F3's caches; and the order of the ways is drawn anew for each
pass. When the network changes, each way first answers a few questions that are not counted, so that what it learns
about the network it knows.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import msgspec
from rich.console import Console
from tokenizers import Tokenizer

from cli import terminal
from cli.args import config_parser, load_config, run_program
from common.config_schema import HttpClientConfig
from common.errors import ConfigError
from common.http.client import HTTPClient
from experiments.counters.cloud import counted
from experiments.harness.journal import Journal
from experiments.harness.load import TimedAnswer, load
from experiments.harness.options import numbers
from experiments.harness.progress import progress
from experiments.harness.servers import AskedServer, Site, site
from experiments.network import pages, view, ways
from experiments.network.passes import Block, NetworkCell, Pass, PassResult, SweepPlan, passes
from experiments.network.report import NetworkReport, report
from experiments.network.ways import AnswerMode
from experiments.questions.workload import Question, questions

SETTLE_QUESTIONS = 4
"""Questions that each way answers, uncounted, when the network has changed."""
FLOAT32 = "cloud.model.dtype=float32"
CLIENT = HttpClientConfig(timeout=120.0, max_retries=0, connection_pool_size=1000)


class NetworkSweep:
    """Asks one pass after another over one site. Owns the connections of the clients."""

    def __init__(self, plan: SweepPlan, asked: Sequence[Question], where: Site) -> None:
        self._plan = plan
        self._prompts = [question.prompt for question in asked]
        self._site = where
        self._clients = {server: HTTPClient(url, CLIENT) for server, url in where.urls.items()}
        self._cloud = HTTPClient(where.cloud_url, CLIENT)
        self._network: tuple[float, float] | None = None

    async def aclose(self) -> None:
        for client in (self._cloud, *self._clients.values()):
            await client.close()

    async def make(self, one: Pass, say: Callable[[str], None]) -> PassResult:
        prompts = self._prompts[one.first : one.last]
        await self._change_network(one.cell, say)
        say(f"{_named(one.cell)}: warming caches")
        await self._warm(prompts)
        blocks = {}
        for way in one.order(self._plan.chosen_ways, self._plan.seed):
            say(f"{_named(one.cell)}: {way.title}")
            blocks[way.name] = await self._block(way, prompts, one.cell.clients)
        return PassResult(one, [blocks[name] for name in self._plan.ways])

    async def _change_network(self, cell: NetworkCell, say: Callable[[str], None]) -> None:
        wanted = cell.round_trip, cell.uplink
        if wanted == self._network:
            return
        self._site.network.delay = cell.round_trip / 2000
        self._site.network.bandwidth = cell.uplink * 1e6 / 8
        for way in self._plan.chosen_ways:
            say(f"{_named(cell)}: settling, {way.title}")
            await self._ask(way, self._prompts[:SETTLE_QUESTIONS], SETTLE_QUESTIONS)
        self._network = wanted

    async def _warm(self, prompts: Sequence[str]) -> None:
        await load(self._cloud, prompts, SETTLE_QUESTIONS, {}, max_tokens=1)
        for server, client in self._clients.items():
            if server is not AskedServer.CLOUD:
                await load(client, prompts, SETTLE_QUESTIONS, ways.WAYS["edge"].fields, max_tokens=1)

    async def _block(self, way: AnswerMode, prompts: Sequence[str], clients: int) -> Block:
        network = self._site.network
        before, up, down = await counted(self._cloud), network.up.bytes, network.down.bytes
        began = time.perf_counter()
        answers = await self._ask(way, prompts, clients)
        seconds = time.perf_counter() - began
        return Block(
            way=way.name,
            seconds=seconds,
            answers=answers,
            counts=await counted(self._cloud) - before,
            bytes_up=network.up.bytes - up,
            bytes_down=network.down.bytes - down,
        )

    async def _ask(self, way: AnswerMode, prompts: Sequence[str], clients: int) -> list[TimedAnswer]:
        return await load(self._clients[way.server], prompts, clients, way.fields, self._plan.max_tokens)


def _named(cell: NetworkCell) -> str:
    return f"{cell.round_trip:g} ms, {cell.uplink:g} Mbit/s, {cell.clients} clients"


async def main() -> None:
    args = parser().parse_args()
    plan, folder, console = plan_of(args), Path(args.output), terminal.console()
    journal = Journal(folder / "passes.jsonl", plan, PassResult, args.resume)
    done = {entry.what for entry in journal.entries}
    everything = list(passes(plan))
    left = [one for one in everything if one not in done]
    if left and args.minutes > 0:
        await _run(args, plan, left, journal, console)
    config = load_config(args)
    found = report(plan, journal.entries, len(everything), token_ends(config.cloud.model.path))
    write(found, folder, console)


async def _run(
    args: argparse.Namespace,
    plan: SweepPlan,
    left: Sequence[Pass],
    journal: Journal[SweepPlan, PassResult],
    console: Console,
) -> None:
    """Makes passes until none is left, or the minutes are over."""
    asked = questions(plan.prompts, plan.seed, Path(plan.data) if plan.data else None)
    plain_edge = any(way.server is AskedServer.PLAIN_EDGE for way in plan.chosen_ways)
    async with (
        site(args, server_settings(plan), plain_edge, console.print) as where,
        contextlib.aclosing(NetworkSweep(plan, asked, where)) as sweep,
    ):
        with progress(console) as bar:
            task = bar.add_task("", total=sum(one.weight for one in left))
            until = time.monotonic() + 60 * args.minutes
            for one in left:
                if time.monotonic() > until:
                    return
                journal.add(await sweep.make(one, lambda doing: bar.update(task, description=doing)))
                bar.advance(task, one.weight)


def server_settings(plan: SweepPlan) -> list[str]:
    """An edge and a cloud that have room for all clients at once, and exact arithmetic."""
    most = max(plan.clients)
    room = [
        f"edge.model.sequences={max(4, most)}",
        f"cloud.draft_verifier.resident_sessions={max(8, most)}",
        f"cloud.draft_verifier.batch.max_batch_size={max(32, 2 * most)}",
    ]
    return [FLOAT32, *room]


def token_ends(model: str) -> Callable[[str], Sequence[int]]:
    """How the cloud's model (a folder or a hub id) cuts a text into tokens."""
    file = Path(model) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if file.exists() else Tokenizer.from_pretrained(model)

    @cache
    def ends(text: str) -> Sequence[int]:
        return [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]

    return ends


def write(found: NetworkReport, folder: Path, console: Console) -> None:
    """report.json, .md and .html, tables.txt and the plots; on the console the speeds, and where the rest is."""
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    tables = view.details(found), view.ratios(found), view.conclusion(found)
    with (folder / "tables.txt").open("w") as out:
        Console(file=out, width=220, highlight=False, markup=False).print(*tables, sep="\n")
    console.print(view.brief(found), view.conclusion(found), sep="\n")
    (folder / "report.html").write_text(pages.to_html(found))
    (folder / "report.md").write_text(pages.to_markdown(found))
    names = "report.json", "report.md", "report.html", "tables.txt"
    for path in [*(folder / name for name in names), *view.draw(found, folder)]:
        console.print(f"written: {path}")
    if found.passes_done < found.passes_planned:
        console.print(f"{found.passes_done} of {found.passes_planned} passes are done; --resume goes on")


def plan_of(args: argparse.Namespace) -> SweepPlan:
    """Raises ConfigError for what makes no sense."""
    plan = SweepPlan(
        round_trips=numbers(args.round_trips, "--round-trips"),
        uplinks=numbers(args.uplinks, "--uplinks"),
        clients=[int(n) for n in numbers(args.clients, "--clients")],
        ways=[way.name for way in ways.chosen(args.ways)],
        prompts=args.prompts,
        repeats=args.repeats,
        max_tokens=args.max_tokens,
        seed=args.seed,
        config=args.config,
        settings=args.set,
        data=args.data,
    )
    if min(plan.uplinks) <= 0 or min(plan.clients) < 1 or min(plan.prompts, plan.repeats, plan.max_tokens) < 1:
        raise ConfigError("uplinks, clients, prompts, repeats and tokens must be more than 0")
    return plan


def parser() -> argparse.ArgumentParser:
    made = config_parser("Measure every way of answering over many networks and loads.")
    made.add_argument("--round-trips", default="0,14,50,100", metavar="MS", help="milliseconds (default %(default)s)")
    made.add_argument("--uplinks", default="10,20,80", metavar="MBIT", help="Mbit/s each way (default %(default)s)")
    made.add_argument("--clients", default="1,4,16", metavar="N", help="concurrent clients (default %(default)s)")
    made.add_argument("--ways", default=ways.ALL, help=f"of {','.join(ways.WAYS)} (default: {ways.ALL})")
    made.add_argument(
        "--questions",
        "--prompts",
        dest="prompts",
        type=int,
        default=200,
        help="different prompts in each cell (default %(default)s)",
    )
    made.add_argument("--repeats", type=int, default=1, help="answers per prompt, cell and way (default %(default)s)")
    made.add_argument("--max-tokens", type=int, default=96, help="longest answer (default %(default)s)")
    made.add_argument("--data", metavar="FILE", help='JSON lines with a "prompt" each (default: the demo corpus)')
    made.add_argument("--seed", type=int, default=0, help="chooses prompts and orders (default %(default)s)")
    made.add_argument(
        "--minutes", type=float, default=15, help="begin no pass after so many; 0: only report (default %(default)s)"
    )
    made.add_argument("--output", default="logs/network-sweep", metavar="DIR", help="folder (default %(default)s)")
    made.add_argument("--resume", action="store_true", help="go on with the sweep in the output folder")
    return made


if __name__ == "__main__":
    sys.exit(run_program(main()))
