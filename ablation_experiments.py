"""Measures what each feature contributes: all questions with it and without it.

python ablation_experiments.py [--only NAMES] [--questions 40] [--repeats 3] [--output DIR] [--compare JSON JSON]
"""

import sys
from pathlib import Path

from cli import terminal
from cli.args import run_program
from experiments.harness import experiment
from experiments.harness.experiment import ExperimentKind
from experiments.report import compare
from experiments.setup import ablations

QUESTIONS, REPEATS = 40, 3
"""All presets take about 8 minutes on 2 cores."""
NAME = "ablation_report"


async def main() -> None:
    parser = experiment.parser("Measure what each feature contributes by switching it off.", QUESTIONS, REPEATS)
    parser.add_argument("--only", metavar="NAMES", help="comma-separated ablations to measure (default: all)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="JSON", help="compare two reports and measure nothing")
    args, console = parser.parse_args(), terminal.console()
    if args.compare:
        for path in compare.write(compare.show(*args.compare, console), Path(args.output)):
            console.print(f"written: {path}")
        return
    base = experiment.base_config(args)
    chosen = ablations.chosen(args.only, base.experiments.ablations)
    kind = ExperimentKind(title="What each feature contributes", name=NAME, program="ablation_experiments.py")
    await experiment.run(args, chosen, base, console, kind)


if __name__ == "__main__":
    sys.exit(run_program(main()))
