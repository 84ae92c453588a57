"""What each part is worth: the same questions with and without it. python ablation_experiments.py [--only NAMES] ..."""

import sys
from pathlib import Path

from cli import terminal
from cli.args import run_program
from experiments.harness import experiment
from experiments.report import compare
from experiments.setup import ablations

QUESTIONS, REPEATS = 40, 3
"""So that all presets take about 8 minutes on two cores."""
NAME = "ablation_report"


async def main() -> None:
    parser = experiment.parser("Measure what each part is worth, by switching it off.", QUESTIONS, REPEATS)
    parser.add_argument("--only", metavar="NAMES", help="some of the ablations, with commas between (default: all)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="JSON", help="measure nothing; two reports compared")
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
