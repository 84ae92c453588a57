"""Measures quality and agreement over the cloud rate, for each confidence strategy and threshold.

    python -m experiments.threshold_sweep [--thresholds 0.5,0.8,...] [--strategies max_prob,entropy,...]
        [--product-thresholds 0] [--questions 24] [--resume] [--output DIR]

Requests carry the thresholds, so one edge serves all of them; each strategy has its own edge. Every curve begins at
edge only and ends at cloud only; the area under it says which strategy is the best at equal cloud rate.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from cli import terminal
from cli.args import run_program
from common.errors import ConfigError
from common.types import ConfidenceStrategy, Mode
from experiments.harness import experiment, measures, results
from experiments.harness.areas import areas
from experiments.harness.experiment import ExperimentKind
from experiments.harness.options import numbers
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.report.schema import Curves, ExperimentReport, Series, SweepDescription
from experiments.setup import ablations
from experiments.setup.ablations import Ablation

QUESTIONS, REPEATS = 24, 1
"""All strategies take about 6 minutes on 2 cores."""
THRESHOLDS = "0.1,0.3,0.5,0.7,0.8,0.9,0.95,0.99"
"""Denser where most confidences are; below the first is almost edge only, above the last almost cloud only."""
NAME = "threshold_report"
ENDS = tuple(one for one in ablations.PRESETS if one.mode in (Mode.EDGE_ONLY, Mode.CLOUD_ONLY))
PLOTS = (
    Curves(x="cloud_rate", y="quality"),
    Curves(x="cloud_rate", y="agreement"),
    Curves(y="quality"),
    Curves(y="agreement"),
    Curves(y="cloud_rate"),
    Curves(y="latency_mean_ms"),
)


def series(strategies: str, thresholds: str, product_thresholds: str) -> list[tuple[Series, list[Ablation]]]:
    """A curve for each strategy and product threshold, with its points. Raises ConfigError for invalid options."""
    at, products = shares(thresholds, "--thresholds"), shares(product_thresholds, "--product-thresholds")
    curves = []
    for strategy in strategies_of(strategies):
        for product in products:
            name = strategy if len(products) == 1 else f"{strategy}, product {product:g}"
            points = [point(strategy, threshold, product, f"{name} {threshold:g}") for threshold in at]
            curves.append((Series(name=name, configurations=[one.name for one in points], at=at), points))
    return curves


def point(strategy: ConfidenceStrategy, threshold: float, product: float, name: str) -> Ablation:
    """One point of a curve; a product threshold of 0 is none."""
    gate = {"strategy": str(strategy), "threshold": threshold, "product_threshold": product}
    described = f"tokens with {strategy} below {threshold:g} are not confident"
    if product:
        described += f", nor is a draft whose product is below {product:g}"
    return Ablation(name=name, description=described, config_overrides={"edge": {"confidence": gate}})


def strategies_of(text: str) -> list[ConfidenceStrategy]:
    """The strategies of a comma-separated list, each once; raises ConfigError."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in set(ConfidenceStrategy):
            raise ConfigError(f"--strategies: no strategy {name!r}; there are {', '.join(ConfidenceStrategy)}")
    return [ConfidenceStrategy(name) for name in names]


def shares(text: str, option: str) -> list[float]:
    """Numbers from 0 to 1 in increasing order; raises ConfigError."""
    values = sorted(numbers(text, option))
    if values[-1] > 1:
        raise ConfigError(f"{option} takes numbers from 0 to 1, not {values[-1]:g}")
    return values


def finish(
    swept: Sequence[Series], report: ExperimentReport, plan: ExperimentPlan, entries: Sequence[TrialResult]
) -> None:
    """Adds the curves and their areas to the report."""
    by_name: dict[str, list[TrialResult]] = {one.name: [] for one in plan.configurations}
    for entry in entries:
        by_name[entry.what.configuration].append(entry)
    samples = {name: measures.sample(found) for name, found in by_name.items()}
    definitions, ends = results.definitions_for(plan, by_name), [one.name for one in ENDS]
    report.sweep = SweepDescription(
        parameter="Threshold",
        series=list(swept),
        ends=ends,
        plots=list(PLOTS),
        areas=[
            area
            for name in ("quality", "agreement")
            if name in definitions
            for area in areas(swept, ends, samples, definitions["cloud_rate"], definitions[name], name)
        ],
    )


def parser() -> argparse.ArgumentParser:
    options = experiment.parser(
        "Measure quality and agreement over the cloud rate, by strategy and threshold.", QUESTIONS, REPEATS
    )
    every = ",".join(ConfidenceStrategy)
    options.add_argument(
        "--thresholds", default=THRESHOLDS, metavar="T", help="confidence thresholds, 0 to 1 (default %(default)s)"
    )
    options.add_argument(
        "--strategies", default=every, metavar="NAMES", help="confidence strategies (default: %(default)s)"
    )
    options.add_argument(
        "--product-thresholds",
        default="0",
        metavar="T",
        help="product thresholds, 0 to 1, a curve for each; 0: none (default %(default)s)",
    )
    return options


async def main() -> None:
    await measure(parser().parse_args(), terminal.console())


async def measure(args: argparse.Namespace, console: Console) -> ExperimentReport:
    """Raises as experiment.run does, and ConfigError for invalid options."""
    base = experiment.base_config(args)
    if base.inference.online.enabled:
        raise ConfigError("inference.online: the online gate moves its thresholds; switch it off for this experiment")
    curves = series(args.strategies, args.thresholds, args.product_thresholds)
    chosen = [ablations.BASELINE, *ENDS, *(point for _, points in curves for point in points)]
    kind = ExperimentKind(
        title="What the threshold costs and keeps",
        name=NAME,
        program="-m experiments.threshold_sweep",
        settle_first=False,
        finish=partial(finish, [one for one, _ in curves]),
    )
    return await experiment.run(args, chosen, base, console, kind)


if __name__ == "__main__":
    sys.exit(run_program(main()))
