"""Measures every answer mode over many networks and loads in one interleaved run: speed, bytes, work and exactness.

    python -m experiments.network_sweep [--round-trips 0,14,50,100] [--uplinks 10,20,80] [--clients 1,4,16]
        [--ways edge,cloud,rounds,...] [--prompts 200] [--repeats 1] [--minutes 15] [--resume] [--output DIR]
    python -m experiments.network_sweep --ways peers --pinned

It stops after `--minutes`: first a few questions in every cell, then more; `--resume` continues. A proxy between edge
and cloud simulates the network; the clients are beside the edge. One pair of servers serves the whole sweep, and a
second edge the modes with F4 off. The cloud computes in float32, so every lossless answer must equal cloud only's,
unless a `--temperature` samples them. `--ways peers` compares an edge with what a user might pick in its place, each
behind a network of its own: vLLM that speculates with n-grams or with the edge's model beside it, and llama-server, if
it was built, with both models.

Caches are equally warm for all modes: before each pass every question is asked once, for one token, of the cloud itself
and of each edge, so that all modes find the same prompts in F3's caches; and each pass shuffles the order of the modes.
When the network changes, each mode first answers a few questions that are not counted, so that its estimates fit the
network.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from rich.box import HEAVY_HEAD
from rich.console import Console
from tokenizers import Tokenizer

from cli import terminal
from cli.args import amount, config_parser, load_config, run_program
from common.errors import ConfigError
from common.files import model_root
from common.files.installation import LLAMA_SERVER
from experiments.harness.journal import Journal
from experiments.harness.options import OUTPUT_HELP, client_counts, numbers
from experiments.harness.progress import progress
from experiments.harness.servers import NOT_PINNED, PEERS, AskedServer, pinned_apart, site
from experiments.network import tables
from experiments.network.answer_modes import ANSWER_MODES, DEFAULT_MODES, PEER_MODES, select_modes
from experiments.network.document import of_sweep
from experiments.network.passes import Pass, PassResult, SweepPlan, passes
from experiments.network.report import report
from experiments.network.schema import NetworkReport
from experiments.network.sweep import NetworkSweep
from experiments.questions import datasets
from experiments.questions.workload import Question, questions
from experiments.report import html, markdown, panel_grid
from experiments.report.document import ReportFiles, write_files

TABLES_WIDTH = 240
"""Of tables.txt, in characters."""
FLOAT32 = "cloud.model.dtype=float32"


async def main() -> None:
    args = parser().parse_args()
    plan, files, console = plan_of(args), ReportFiles.at(args.output, "report"), terminal.console()
    journal = Journal(files.folder / "passes.jsonl", plan, PassResult, args.resume)
    done = {entry.what for entry in journal.entries}
    planned = list(passes(plan))
    left = [one for one in planned if one not in done]
    if left and args.minutes > 0:
        await _run(args, plan, left, journal, console)
    config = load_config(args)
    found = report(plan, journal.entries, len(planned), token_ends(model_root.cloud_model(config).path))
    write(found, files, console)


async def _run(
    args: argparse.Namespace,
    plan: SweepPlan,
    left: Sequence[Pass],
    journal: Journal[SweepPlan, PassResult],
    console: Console,
) -> None:
    """Runs passes until none is left or the minutes are over."""
    plain_edge = any(mode.server is AskedServer.PLAIN_EDGE for mode in plan.modes)
    asked = questions_of(plan)
    peers = [mode.server for mode in plan.modes if mode.server in PEERS]
    pinning = pinned_apart() if plan.pinned else NOT_PINNED
    async with (
        site(args, server_settings(plan), plain_edge, console.print, peers, pinning) as servers,
        contextlib.aclosing(NetworkSweep(plan, asked, servers)) as sweep,
    ):
        os.sched_setaffinity(0, pinning.edges or os.sched_getaffinity(0))
        with progress(console) as bar:
            task = bar.add_task("", total=sum(one.weight for one in left))
            until = time.monotonic() + 60 * args.minutes
            for one in left:
                if time.monotonic() > until:
                    return
                journal.add(await sweep.run_pass(one, lambda doing: bar.update(task, description=doing)))
                bar.advance(task, one.weight)


def questions_of(plan: SweepPlan) -> list[Question]:
    """Raises ConfigError for data that cannot be read."""
    if plan.data is None:
        return questions(plan.prompts, plan.seed)
    return datasets.load(plan.data, plan.prompts, plan.seed).questions


def server_settings(plan: SweepPlan) -> list[str]:
    """Exact arithmetic, and room for all concurrent clients in edge and cloud."""
    clients = max(plan.clients)
    room = [
        f"edge.model.sequences={max(4, clients)}",
        f"cloud.draft_verifier.resident_sessions={max(8, clients)}",
        f"cloud.draft_verifier.batch.max_batch_size={max(32, 2 * clients)}",
    ]
    return [FLOAT32, *room]


def token_ends(model: str) -> Callable[[str], Sequence[int]]:
    """Gives the end of each token of a text, in characters, by the tokenizer of `model` (a folder or a hub id)."""
    file = Path(model) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if file.exists() else Tokenizer.from_pretrained(model)

    @cache
    def ends(text: str) -> Sequence[int]:
        return [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]

    return ends


def write(found: NetworkReport, files: ReportFiles, console: Console) -> None:
    """Writes the report, tables.txt and the plots; prints the speeds and the names of the files."""
    document, conclusion = of_sweep(found), tables.conclusion(found)
    written = write_files(files, found, markdown.render_document(document), html.render_document(document))
    written += [panel_grid.write(grid, files.folder) for grid in document.grids]
    details = tables.for_terminal(tables.details(found), HEAVY_HEAD, rows_together=len(found.plan.ways))
    ratios = tables.for_terminal(tables.ratios(found), HEAVY_HEAD)
    with (files.folder / "tables.txt").open("w") as out:
        Console(file=out, width=TABLES_WIDTH, highlight=False, markup=False).print(
            details, ratios, conclusion, sep="\n"
        )
    console.print(tables.for_terminal(tables.brief(found)), conclusion, sep="\n")
    for verdict in tables.verdicts(found):
        console.print(f"an edge drafter (auto) is, {verdict}")
    for path in [*written, files.folder / "tables.txt"]:
        console.print(f"written: {path}")
    if found.passes_done < found.passes_planned:
        console.print(f"{found.passes_done} of {found.passes_planned} passes are done; --resume continues")


def plan_of(args: argparse.Namespace) -> SweepPlan:
    """Raises ConfigError for values out of range."""
    data = datasets.spec_for(args.data, load_config(args))
    available = len(datasets.load(data, args.prompts, args.seed).questions) if data else args.prompts
    plan = SweepPlan(
        round_trips=numbers(args.round_trips, "--round-trips"),
        uplinks=numbers(args.uplinks, "--uplinks"),
        clients=client_counts(args.clients),
        ways=[mode.name for mode in select_modes(ways_of(args.ways))],
        prompts=min(args.prompts, available),
        repeats=args.repeats,
        max_tokens=args.max_tokens,
        seed=args.seed,
        config=args.config,
        settings=args.set,
        data=data,
        pinned=args.pinned,
        temperature=args.temperature,
    )
    if min(plan.uplinks) <= 0 or min(plan.prompts, plan.repeats, plan.max_tokens) < 1:
        raise ConfigError("uplinks, prompts, repeats and tokens must be more than 0")
    if plan.temperature > 2:
        raise ConfigError(f"--temperature must be from 0 to 2, not {plan.temperature:g}")
    return plan


def ways_of(names: str) -> str:
    """The names of `--ways`; `peers` stands for an edge and all that can run here in its place."""
    if names != "peers":
        return names
    if not LLAMA_SERVER.exists():
        terminal.console().print("llama-server is left out: it was not built (make llama-server)")
    return PEER_MODES if LLAMA_SERVER.exists() else PEER_MODES.removesuffix(",llama-server")


def parser() -> argparse.ArgumentParser:
    options = config_parser("Measure every answer mode over many networks and loads.")
    options.add_argument(
        "--round-trips", default="0,14,50,100", metavar="MS", help="milliseconds (default %(default)s)"
    )
    options.add_argument(
        "--uplinks", default="10,20,80", metavar="MBIT", help="Mbit/s in each direction (default %(default)s)"
    )
    options.add_argument("--clients", default="1,4,16", metavar="N", help="concurrent clients (default %(default)s)")
    options.add_argument(
        "--ways",
        default=DEFAULT_MODES,
        help=f"answer modes, comma-separated: {','.join(ANSWER_MODES)} (default: {DEFAULT_MODES}); or peers",
    )
    options.add_argument(
        "--pinned", action="store_true", help="edges and clients have the last core, the clouds all others"
    )
    options.add_argument(
        "--questions",
        "--prompts",
        dest="prompts",
        type=int,
        default=200,
        help="different prompts in each cell (default %(default)s)",
    )
    options.add_argument(
        "--repeats", type=int, default=1, help="answers per prompt, cell and mode (default %(default)s)"
    )
    options.add_argument("--max-tokens", type=int, default=96, help="longest answer (default %(default)s)")
    options.add_argument(
        "--data",
        metavar="FILE|NAME",
        help="questions (experiments/questions/datasets.py; default: the demo corpus; for other models: general)",
    )
    options.add_argument(
        "--temperature", type=amount, default=0.0, help="0: greedy, and compared (default %(default)g)"
    )
    options.add_argument("--seed", type=int, default=0, help="chooses prompts and orders (default %(default)s)")
    options.add_argument(
        "--minutes", type=amount, default=15, help="start no pass after this time; 0: only report (default %(default)s)"
    )
    options.add_argument(
        "--output", default="logs/network-sweep", metavar="DIR", help=f"{OUTPUT_HELP} (default %(default)s)"
    )
    options.add_argument("--resume", action="store_true", help="continue the sweep in the output folder")
    return options


if __name__ == "__main__":
    sys.exit(run_program(main()))
