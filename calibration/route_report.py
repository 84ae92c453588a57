"""Shows the calibration of a router as a table, and writes its file, a JSON report and the config that names it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from calibration import risk
from calibration.calibrate import CalibrationRequest
from calibration.report import FOLDER, put
from calibration.result import MEANINGS
from calibration.simulation import Answers, Numbers
from calibration.target import CalibrationTarget
from common import config
from common.config_edge import ConfidenceConfig
from common.errors import ConfigError
from common.routing import features
from common.routing.router import Router

AREA = "area above random"
NAMES = [name for name in MEANINGS if name != "calls_per_token"]


@dataclass(frozen=True)
class RouterFit:
    """A router, the thresholds that were tried for it, and what each gives: on the part that chose, and held out."""

    router: Router
    thresholds: list[float]
    tried: Answers
    measured: Answers

    @property
    def chosen(self) -> int:
        return self.thresholds.index(self.router.threshold)


class RouterFigure(NamedTuple):
    """On the part that chose the threshold, and on the held-out part with its 95 % interval."""

    chosen: float
    measured: float
    low: float
    high: float


def check(file: Path) -> None:
    """Raises ConfigError if no router can be written there; call it before any work is done."""
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"--router {file}: {'is a folder' if file.is_dir() else 'no such folder'}")


def show(fitted: RouterFit, target: CalibrationTarget, console: Console) -> None:
    chosen, router = fitted.chosen, fitted.router
    table = Table(title=f"A router, calibrated for {target}", title_justify="left")
    parts = f"threshold chosen\non {fitted.tried.worth.shape[-1]}", f"measured\non {fitted.measured.worth.shape[-1]}"
    for column in ("", *parts, "95 %"):
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    for name, each in figures(fitted).items():
        interval = f"{each.low:.3f} to {each.high:.3f}"
        table.add_row(name.replace("_", " "), f"{each.chosen:.3f}", f"{each.measured:.3f}", interval)
    console.print(table)
    asked = "the prompt" if not router.tokens else f"the prompt and the edge's first {router.tokens} tokens"
    share = float(fitted.measured.calls[chosen].mean())
    console.print(
        f"From a score of {router.threshold:g} on the cloud answers: {share:.1%} of the held-out questions. The router "
        f"looks at {asked}; its weights were fitted to {router.training.questions} other questions."
    )


def figures(fitted: RouterFit) -> dict[str, RouterFigure]:
    """All of NAMES, and the AREA."""
    tried, measured = fitted.tried[fitted.chosen], fitted.measured[fitted.chosen]
    count, found = measured.worth.shape[-1], {}
    for name in NAMES:
        values = float(getattr(tried, name)), float(getattr(measured, name))
        if name == "risk":
            interval = risk.wilson(int(measured.worse.sum()), count)
        else:
            interval = risk.bootstrap(lambda drawn, name=name: getattr(measured.of(drawn), name), count)  # type: ignore[misc]
        found[name] = RouterFigure(*values, *interval)
    each_once = [np.ones((1, each.worth.shape[-1])) for each in (fitted.tried, fitted.measured)]
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), risk.RESAMPLES).astype(np.float64)
    areas = [float(area(*pair)[0]) for pair in zip((fitted.tried, fitted.measured), each_once, strict=True)]
    found[AREA] = RouterFigure(*areas, *np.quantile(area(fitted.measured, draws), (0.025, 0.975)).tolist())
    return found


def area(rows: Answers, drawn: Numbers) -> Numbers:
    """The mean quality over all cloud work, of every threshold's row, minus that of sending as many at random.

    `drawn`: how often each question is drawn, [draws, N]. At most half of the distance between edge and cloud, and more
    only where long answers need no cloud; 0, if the router knows nothing.
    """
    work = (drawn @ rows.computed.T / (drawn @ rows.alone.T))[:, ::-1]
    quality = (drawn @ rows.worth.T / np.maximum(drawn @ rows.cloud_worth.T, 1e-12))[:, ::-1]
    return np.asarray(np.trapezoid(quality, work, axis=-1) - (quality[:, 0] + quality[:, -1]) / 2)


def write(
    fitted: RouterFit, request: CalibrationRequest, confidence: ConfidenceConfig, file: Path, console: Console
) -> None:
    """Writes the three files, and prints the path of each."""
    changes = {
        "edge.confidence.strategy": str(confidence.strategy),
        "edge.confidence.temperature": confidence.temperature,
        "edge.confidence.top_k": confidence.top_k,
        "edge.router.path": str(file),
    }
    tree = config.with_changes(request.output.base, changes)
    put(file, msgspec.json.format(msgspec.json.encode(fitted.router)) + b"\n", console)
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = msgspec.json.encode(_report(fitted, request, changes))
    put(FOLDER / f"{file.stem}.json", msgspec.json.format(report), console)
    head = f"# The router that edgecloud calibrate --router fitted for {request.target}.\n"
    head += "# A key that is missing here has its default.\n"
    put(request.output.path, (head + yaml.safe_dump(tree, sort_keys=False)).encode(), console)


def _report(fitted: RouterFit, request: CalibrationRequest, changes: dict[str, Any]) -> dict[str, Any]:
    measured = fitted.measured
    columns: list[NDArray[np.floating[Any]]] = [np.array(fitted.thresholds), measured.cloud_work, measured.quality]
    return {
        "objective": request.target.flag.removeprefix("--"),
        "target": request.target.target,
        "confidence": request.target.confidence,
        "config": changes,
        "router": fitted.router,
        "features": features.NAMES,
        "meanings": {name: MEANINGS[name] for name in NAMES},
        "figures": {name: each._asdict() for name, each in figures(fitted).items()},
        "curve": np.column_stack(columns).tolist(),
    }
