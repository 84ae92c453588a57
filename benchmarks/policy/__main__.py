"""Replays the draft policy over recorded answers, beside every fixed choice in hindsight and an oracle.

python -m benchmarks.policy FILE [--round-trips 0,14,50,100] [--clients 1] [--sampled SAMPLES] [--step-ms MS] ...
python -m benchmarks.policy FILE --record [--config FILE] [--set KEY=VALUE] [--prompts 10] [--tokens 64] [--data SPEC]

With --record, two servers that are running answer the prompts first, and what they do is written to FILE. Without, the
pipeline answers the recorded prompts again in virtual time: its policy meets all kinds of text in turn. The times of
the pair can be replaced, to see another machine. --sampled: the answers of `benchmarks.policy.sampled` instead, one
kind for each text and temperature.
"""

import argparse
import sys
from pathlib import Path

import msgspec
from rich.progress import track

from benchmarks.policy import sampled, trace
from benchmarks.policy.record import RecordedPrompt, record_all
from benchmarks.policy.regret import cells, table
from benchmarks.policy.replay import ReplaySetting
from cli import terminal
from cli.args import amount, config_parser, count, run_sync_program, run_with_config
from common.types import Sampling
from experiments.harness.options import client_counts, numbers
from experiments.questions import datasets, general

TIMES = {
    "draft": "drafting a token",
    "drafted": "a token of another answer in the same step of the edge; 0: each answer has an edge of its own",
    "step": "a step of the cloud",
    "verified": "another token in it",
}
KINDS = {"code": general.CODE, "prose": general.PROSE}


def arguments() -> argparse.Namespace:
    parser = config_parser("Replay the draft policy over recorded answers, and compare it with the best in hindsight.")
    parser.add_argument("file", type=Path, help="the traces, JSON lines")
    parser.add_argument("--record", action="store_true", help="first record them from the two servers of the config")
    parser.add_argument("--prompts", type=count, default=10, help="with --record: of each kind of text (default 10)")
    parser.add_argument("--tokens", type=count, default=64, help="with --record: longest answer (default 64)")
    parser.add_argument(
        "--temperature", type=amount, default=0.0, help="with --record: of the cloud's answers (default 0)"
    )
    parser.add_argument(
        "--data",
        action="append",
        metavar="FILE|NAME",
        help="with --record: the prompts, one kind of text for each; may be repeated (default: code and prose)",
    )
    parser.add_argument("--round-trips", default="0,14,50,100", help="in milliseconds (default 0,14,50,100)")
    parser.add_argument("--clients", default="1", help="at the same time (default 1); several: 1,4,16")
    parser.add_argument("--sampled", type=Path, metavar="SAMPLES", help="replay these answers, with the times of FILE")
    for name, what in TIMES.items():
        parser.add_argument(f"--{name}-ms", type=amount, help=f"milliseconds of {what} (default: as recorded)")
    return parser.parse_args()


def prompts(args: argparse.Namespace) -> list[RecordedPrompt]:
    """The prompts of all kinds in turn, each with a seed of its own where answers are sampled."""
    kinds = {spec: [q.prompt for q in datasets.load(spec, args.prompts, seed=0).questions] for spec in args.data or ()}
    chosen = kinds or {kind: list(texts[: args.prompts]) for kind, texts in KINDS.items()}
    return [
        RecordedPrompt(kind, texts[n], Sampling(temperature=args.temperature, seed=n if args.temperature else None))
        for n in range(args.prompts)
        for kind, texts in chosen.items()
        if n < len(texts)
    ]


def show(args: argparse.Namespace) -> None:
    """Replays the answers under every round trip, for every number of clients, and prints the tables."""
    times, traces = trace.read(args.file)
    given = {name: getattr(args, f"{name}_ms") for name in TIMES}
    times = msgspec.structs.replace(times, **{name: ms / 1e3 for name, ms in given.items() if ms is not None})
    if args.sampled:
        traces = sampled.traces(args.sampled)
    round_trips = [ms / 1e3 for ms in numbers(args.round_trips, "--round-trips")]
    console = terminal.console()
    for clients in client_counts(args.clients):
        settings = [ReplaySetting(times, round_trip, clients) for round_trip in round_trips]
        found = [
            cell for setting in track(settings, console=console, transient=True) for cell in cells(traces, setting)
        ]
        console.print(table(found, times.name, clients))
        worst = max(found, key=lambda cell: cell.regret)
        console.print(f"largest regret: {worst.regret:+.1%} ({worst.kind}, {worst.round_trip * 1e3:g} ms)")
        slowest, gated = min(cell.over_cloud_only for cell in found), min(cell.gated_over_cloud_only for cell in found)
        console.print(f"lowest speed over the cloud alone: {slowest:.2f}; of gated answers: {gated:.2f}")


def main() -> int:
    args = arguments()
    if args.record:
        code = run_with_config(args, lambda config: record_all(config, prompts(args), args.tokens, args.file))
        if code:
            return code
    return run_sync_program(lambda: show(args))


if __name__ == "__main__":
    sys.exit(main())
