"""Shows a calibration as a table and writes its JSON report, its plot and the calibrated config file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml
from rich.console import Console
from rich.table import Table

from calibration.result import MEANINGS, CalibrationResult, ReportedValue, figures
from calibration.target import CalibrationTarget
from common import config
from common.config_edge import ConfidenceConfig
from common.decoding.policy import Plan
from common.errors import ConfigError

FOLDER = Path("logs/calibration")
"""Where the report and the plot are written, in the working directory."""


@dataclass(frozen=True)
class CalibratedConfig:
    """The config file to write, and the one (None: the default) whose other keys it takes over."""

    path: Path
    base: str | None

    def check(self) -> None:
        """Raises ConfigError if `path` cannot or must not be written; call it before any work is done."""
        if self.path.resolve() == Path(self.base or config.DEFAULT_PATH).resolve():
            raise ConfigError(f"--output {self.path}: is the config that is read; name another file")
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise ConfigError(f"--output {self.path}: {'is a folder' if self.path.is_dir() else 'no such folder'}")


def show(result: CalibrationResult, target: CalibrationTarget, console: Console) -> None:
    plan, mapping = result.fitted.plan, result.fitted.mapping
    title = f"Calibrated for {target}"
    console.print(figure_table(title, result.fitted_on, result.measured_on, figures(result)))
    gate = plan.gate
    console.print(
        f"threshold {gate.threshold:g} (at this confidence the cloud agrees in {float(mapping(gate.threshold)):.1%}), "
        f"product threshold {gate.product_threshold:g}, draft length {plan.max_draft_tokens} tokens"
    )


def figure_table(title: str, fitted_on: int, measured_on: int, found: dict[str, ReportedValue]) -> Table:
    """The figures in rows; `fitted_on`, `measured_on`: numbers of questions."""
    table = Table(title=title, title_justify="left")
    parts = f"fitted\non {fitted_on}", f"simulated\non {measured_on}", f"measured\non {measured_on}"
    for column in ("", *parts, "95 %"):
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    for name, figure in found.items():
        numbers = [f"{value:.3f}" for value in (figure.fitted, figure.expected, figure.measured)]
        table.add_row(name.replace("_", " "), *numbers, f"{figure.low:.3f} to {figure.high:.3f}")
    return table


def changes(plan: Plan, confidence: ConfidenceConfig) -> dict[str, Any]:
    """The config keys of a gate, with the confidence strategy that its thresholds were fitted for."""
    return {
        "edge.confidence.strategy": str(confidence.strategy),
        "edge.confidence.temperature": confidence.temperature,
        "edge.confidence.top_k": confidence.top_k,
        "edge.confidence.threshold": plan.gate.threshold,
        "edge.confidence.product_threshold": plan.gate.product_threshold,
        "inference.max_draft_tokens": plan.max_draft_tokens,
    }


def write(
    result: CalibrationResult,
    target: CalibrationTarget,
    confidence: ConfidenceConfig,
    output: CalibratedConfig,
    console: Console,
) -> None:
    """Writes the report, the plot (if matplotlib is installed) and the config file, and prints each path."""
    report = _report(result, target, changes(result.fitted.plan, confidence))
    tree = config.with_changes(output.base, report["config"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    put(FOLDER / f"{output.path.stem}.json", msgspec.json.format(msgspec.json.encode(report)), console)
    try:
        from calibration.plot import draw
    except ImportError:
        console.print("no plot: matplotlib is not installed (pip install matplotlib)")
    else:
        put(FOLDER / f"{output.path.stem}.png", draw(result, report["figures"]), console)
    head = f"# Thresholds that main.py --mode calibrate found for {target.flag} {target.target:g}.\n"
    head += "# A key that is missing here has its default.\n"
    put(output.path, (head + yaml.safe_dump(tree, sort_keys=False)).encode(), console)


def _report(result: CalibrationResult, target: CalibrationTarget, keys: dict[str, Any]) -> dict[str, Any]:
    mapping = result.fitted.mapping
    return {
        "objective": target.flag.removeprefix("--"),
        "target": target.target,
        "confidence": target.confidence,
        "fitted_on": result.fitted_on,
        "measured_on": result.measured_on,
        "config": keys,
        "meanings": MEANINGS,
        "figures": figures(result),
        "curves": result.curves,
        "isotonic": list(zip(mapping.starts.tolist(), mapping.values.tolist(), strict=True)),
    }


def put(path: Path, data: bytes, console: Console) -> None:
    """Replaces the file at once: a reader sees the old or the new one, never a part."""
    console.print(f"{'replaced' if path.exists() else 'written'} {path}")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
