"""Measures the effect of each part: the same questions with and without it. python ablation_experiments.py"""

import sys
from pathlib import Path

from cli import terminal
from cli.args import run_program
from experiments.harness import experiment
from experiments.report import compare
from experiments.setup import ablations

QUESTIONS, REPEATS = 40, 3
"""All presets then take about 8 minutes on two cores."""
NAME = "ablation_report"


async def main() -> None:
    parser = experiment.parser("Measure the effect of each part by switching it off.", QUESTIONS, REPEATS)
    parser.add_argument("--only", metavar="NAMES", help="comma-separated ablations to run (default: all)")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar="JSON", help="compare two reports instead of measuring"
    )
    args, console = parser.parse_args(), terminal.console()
    if args.compare:
        for path in compare.write(compare.show(*args.compare, console), Path(args.output)):
            console.print(f"written: {path}")
        return
    base = experiment.base_config(args)
    chosen = ablations.chosen(args.only, base.experiments.ablations)
    await experiment.run(args, chosen, base, "What each part is worth", NAME, console)


if __name__ == "__main__":
    sys.exit(run_program(main()))
