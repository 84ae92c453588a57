"""What a calibration came to: a table, a JSON report, a plot, and the config file. Knows no server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from msgspec import Struct
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from calibration import fit as calibration, risk
from common import config
from calibration.fit import Isotonic, Numbers
from common.config_schema import ConfidenceConfig
from common.errors import ConfigError
from common.decoding.policy import Plan
from calibration.simulation import Answers

FOLDER = Path("calibration")
Asked = tuple[str, float, float]
"""The objective's flag, its target, and the confidence."""
Curve = list[tuple[float, float]]
"""(cloud rate, quality), from the least cloud rate on."""

MEANINGS = {
    "quality": "right answers, relative to the cloud's",
    "loss": "exact match below the cloud's",
    "risk": "prompts whose answer is worse than the cloud's",
    "cloud_rate": "answer tokens that the cloud computed or verified",
    "cloud_work": "tokens that the cloud computed, relative to the cloud alone",
    "calls_per_token": "cloud calls per answer token",
}


@dataclass(frozen=True)
class Fitted:
    """The plans that were tried, their simulated answers on the first part, and which of them was taken."""

    tried: Sequence[Plan]
    found: Answers
    chosen: int
    mapping: Isotonic

    @property
    def plan(self) -> Plan:
        return self.tried[self.chosen]


@dataclass(frozen=True)
class CalibrationResult:
    """All there is to report; `measured` are real answers to the held-out part, `expected` simulated ones."""

    fitted: Fitted
    measured: Answers
    expected: Answers
    curves: dict[str, Curve]
    agreement: tuple[Numbers, NDArray[np.bool_]]


class ReportedValue(Struct):
    """One number of the report: simulated on the first part and on the held-out one, measured there, with 95 %."""

    fitted: float
    expected: float
    measured: float
    low: float
    high: float


def curves(fitted: Fitted, held_out: Callable[[Sequence[Plan]], Answers]) -> dict[str, Curve]:
    """Quality against cloud rate on the held-out part, for gates of each kind that are best on the first one.

    The first three kinds draft as many tokens as the config says, `any_length` as many as is best; simulated, so that
    quality is a lower bound.
    """
    longest = max(plan.max_draft_tokens for plan in fitted.tried)
    kinds: dict[str, Callable[[Plan], bool]] = {
        "token": lambda plan: plan.max_draft_tokens == longest and plan.gate.product_threshold == 0,
        "product": lambda plan: plan.max_draft_tokens == longest and plan.gate.threshold == 0,
        "both": lambda plan: plan.max_draft_tokens == longest,
        "any_length": lambda plan: True,
    }
    found = {}
    for name, belongs in kinds.items():
        rows = [i for i, plan in enumerate(fitted.tried) if belongs(plan)]
        rate, quality = fitted.found.cloud_rate[rows], fitted.found.quality[rows]
        best = [fitted.tried[rows[i]] for i in calibration.frontier(rate, -quality)]
        answers = held_out(best)
        found[name] = sorted(zip(answers.cloud_rate.tolist(), answers.quality.tolist(), strict=True))
    return found


def figures(outcome: CalibrationResult) -> dict[str, ReportedValue]:
    fitted, measured = outcome.fitted.found[outcome.fitted.chosen], outcome.measured
    count = measured.worth.shape[-1]
    found = {}
    for name in MEANINGS:
        if name == "risk":
            low, high = risk.wilson(int(measured.worse.sum()), count)
        else:
            low, high = risk.bootstrap(lambda drawn, name=name: getattr(measured.of(drawn), name), count)  # type: ignore[misc]
        fit, expected, real = (float(getattr(answers, name)) for answers in (fitted, outcome.expected, measured))
        found[name] = ReportedValue(fit, expected, real, low, high)
    return found


def show(outcome: CalibrationResult, asked: Asked, console: Console) -> None:
    flag, target, confidence = asked
    plan, mapping = outcome.fitted.plan, outcome.fitted.mapping
    wanted = f"{flag} {target:g}" + (f" --confidence {confidence:g}" if flag == "--max-risk" else "")
    fitted_on, held_out = outcome.fitted.found.worth.shape[-1], outcome.measured.worth.shape[-1]
    table = Table(title=f"Calibrated for {wanted}", title_justify="left")
    for column in ("", f"fitted\non {fitted_on}", f"simulated\non {held_out}", f"measured\non {held_out}", "95 %"):
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    for name, figure in figures(outcome).items():
        numbers = [f"{value:.3f}" for value in (figure.fitted, figure.expected, figure.measured)]
        table.add_row(name.replace("_", " "), *numbers, f"{figure.low:.3f} to {figure.high:.3f}")
    console.print(table)
    gate = plan.gate
    sure = float(mapping(gate.threshold))
    console.print(
        f"threshold {gate.threshold:g} (with this confidence the cloud agrees in {sure:.1%}), "
        f"product threshold {gate.product_threshold:g}, drafts of {plan.max_draft_tokens}"
    )


def check_output(output: Path, base: str | None) -> None:
    """Raises ConfigError for a file that cannot or must not be written, before any work is done."""
    if output.resolve() == Path(base or config.DEFAULT_PATH).resolve():
        raise ConfigError(f"--output {output}: is the config that is read; name another file")
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"--output {output}: {'is a folder' if output.is_dir() else 'no such folder'}")


def changes(plan: Plan, confidence: ConfidenceConfig) -> dict[str, Any]:
    """The config keys of a gate; it means something only with the strategy that it was fitted for."""
    keys = {"edge.confidence.strategy": str(confidence.strategy)}
    return keys | {
        "edge.confidence.temperature": confidence.temperature,
        "edge.confidence.top_k": confidence.top_k,
        "edge.confidence.threshold": plan.gate.threshold,
        "edge.confidence.product_threshold": plan.gate.product_threshold,
        "inference.max_draft_tokens": plan.max_draft_tokens,
    }


def write(
    outcome: CalibrationResult, asked: Asked, confidence: ConfidenceConfig, output: Path, base: str | None, console: Console
) -> None:
    """The report, the plot and the config file; says of each whether it replaces another."""
    found = figures(outcome)
    flag, target, level = asked
    report = {
        "objective": flag.removeprefix("--"),
        "target": target,
        "confidence": level,
        "fitted_on": outcome.fitted.found.worth.shape[-1],
        "measured_on": outcome.measured.worth.shape[-1],
        "config": changes(outcome.fitted.plan, confidence),
        "meanings": MEANINGS,
        "figures": found,
        "curves": outcome.curves,
        "isotonic": list(
            zip(outcome.fitted.mapping.starts.tolist(), outcome.fitted.mapping.values.tolist(), strict=True)
        ),
    }
    tree = config.with_changes(base, report["config"])
    head = (
        f"# Thresholds calibrated for {flag} {target:g}: main.py --mode calibrate. Keys left out have their defaults.\n"
    )
    FOLDER.mkdir(exist_ok=True)
    _put(FOLDER / f"{output.stem}.json", msgspec.json.format(msgspec.json.encode(report)), console)
    try:
        from calibration.plot import draw
    except ImportError:
        console.print("no plot: matplotlib is not installed (pip install matplotlib)")
    else:
        _put(FOLDER / f"{output.stem}.png", draw(outcome, found), console)
    _put(output, (head + yaml.safe_dump(tree, sort_keys=False)).encode(), console)


def _put(path: Path, data: bytes, console: Console) -> None:
    """Appears whole or not at all."""
    console.print(f"{'replaced' if path.exists() else 'written'} {path}")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
