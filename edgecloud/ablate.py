"""Measures what each feature contributes: edgecloud ablate, or python ablation_experiments.py."""

import argparse
from pathlib import Path

from cli import terminal
from cli.args import run_program
from experiments.harness import experiment
from experiments.harness.experiment import ExperimentKind
from experiments.report import compare
from experiments.report.document import ReportFiles
from experiments.setup import ablations

QUESTIONS, REPEATS = 40, 3
"""All presets take about 8 minutes on 2 cores."""
NAME = "ablation_report"


def parser() -> argparse.ArgumentParser:
    options = experiment.parser("Measure what each feature contributes by switching it off.", QUESTIONS, REPEATS)
    options.add_argument("--only", metavar="NAMES", help="comma-separated ablations to measure (default: all)")
    options.add_argument(
        "--compare", nargs=2, type=Path, metavar="JSON", help="compare two reports and measure nothing"
    )
    return options


def run(args: argparse.Namespace) -> int:
    return run_program(measure(args))


async def measure(args: argparse.Namespace) -> None:
    """Measures and writes the report, or compares two."""
    console = terminal.console()
    if args.compare:
        files = ReportFiles.at(args.output, "ablation_comparison")
        first, second = args.compare
        for path in compare.write(compare.show(first, second, console), files):
            console.print(f"written: {path}")
        return
    base = experiment.base_config(args)
    chosen = ablations.chosen(args.only, base.experiments.ablations)
    kind = ExperimentKind(title="What each feature contributes", name=NAME, program="ablation_experiments.py")
    await experiment.run(args, chosen, base, console, kind)
