"""Shows a calibration of a split model's exits as a table, and writes its report and the calibrated config file."""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import yaml
from rich.console import Console

from calibration.calibrate import CalibrationRequest
from calibration.report import FOLDER, figure_table, put
from calibration.result import MEANINGS, ReportedValue, figures_of
from calibration.simulation import Answers
from calibration.split.levels import LEVELS
from calibration.target import CalibrationTarget
from common import config

SPLIT_MEANINGS = MEANINGS | {
    "cloud_rate": "answer tokens that the cloud gave",
    "cloud_work": "layer-tokens that the cloud computed, relative to the whole model's",
    "risk": "prompts whose answer is worse than the whole model's",
}


@dataclass(frozen=True)
class ThresholdFit:
    """For each of LEVELS the thresholds that were tried, one for each exit, and which was chosen.

    Simulated answers have a row for each: `tried` to the questions that chose, `expected` to the held-out ones;
    `measured` are real answers to these, with the chosen one.
    """

    thresholds: list[tuple[float, ...]]
    chosen: int
    tried: Answers
    expected: Answers
    measured: Answers

    @property
    def chosen_thresholds(self) -> list[float]:
        return list(self.thresholds[self.chosen])

    @property
    def figures(self) -> dict[str, ReportedValue]:
        return figures_of(self.tried[self.chosen], self.expected[self.chosen], self.measured)

    @property
    def changes(self) -> dict[str, Any]:
        """The config keys to set."""
        return {"edge.split.thresholds": self.chosen_thresholds}


def show(fitted: ThresholdFit, target: CalibrationTarget, console: Console) -> None:
    parts = fitted.tried.worth.shape[-1], fitted.measured.worth.shape[-1]
    console.print(figure_table(f"Exits, calibrated for {target}", *parts, fitted.figures))
    each = ", ".join(f"{one:g}" if one <= 1 else "never" for one in fitted.chosen_thresholds)
    console.print(f"each exit is taken from its confidence on: {each} (edge.split.thresholds)")


def write(fitted: ThresholdFit, request: CalibrationRequest, console: Console) -> None:
    """Writes the report and the config file, and prints each path."""
    output, target = request.output, request.target
    tree = config.with_changes(output.base, fitted.changes)
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = msgspec.json.encode(_report(fitted, target))
    put(FOLDER / f"{output.path.stem}.json", msgspec.json.format(report), console)
    head = f"# The thresholds of a split model's exits that edgecloud calibrate --mode split found for {target}.\n"
    head += "# A key that is missing here has its default.\n"
    put(output.path, (head + yaml.safe_dump(tree, sort_keys=False)).encode(), console)


def _report(fitted: ThresholdFit, target: CalibrationTarget) -> dict[str, Any]:
    rows = fitted.expected
    columns = LEVELS, rows.cloud_rate, rows.cloud_work, rows.quality, rows.risk
    return {
        "objective": target.flag.removeprefix("--"),
        "target": target.target,
        "confidence": target.confidence,
        "fitted_on": fitted.tried.worth.shape[-1],
        "measured_on": fitted.measured.worth.shape[-1],
        "config": fitted.changes,
        "meanings": SPLIT_MEANINGS,
        "figures": fitted.figures,
        "curve": {
            "columns": ["level", "cloud_rate", "cloud_work", "quality", "risk"],
            "rows": np.column_stack(columns).tolist(),
            "thresholds": fitted.thresholds,
        },
    }
