"""Draws a calibration: quality over cloud rate for each kind of gate, and a reliability diagram of the confidences."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture

from calibration.result import CalibrationResult, ReportedValue

COLOURS = {"token": "#1f77b4", "product": "#ff7f0e", "both": "#2ca02c", "any_length": "#9467bd"}
LABELS = {
    "token": "token threshold only",
    "product": "product threshold only",
    "both": "both thresholds",
    "any_length": "both, best draft length",
}
BINS = 15
"""Of the reliability diagram, each with the same number of held-out tokens."""


def draw(result: CalibrationResult, figures: dict[str, ReportedValue]) -> bytes:
    """Two plots side by side, as a PNG file."""
    picture = Picture(figsize=(12, 5), layout="constrained")
    left, right = picture.subplots(1, 2)
    _curves(left, result, figures)
    _reliability(right, result)
    data = io.BytesIO()
    FigureCanvasAgg(picture).print_png(data)
    return data.getvalue()


def _curves(axes: Axes, result: CalibrationResult, figures: dict[str, ReportedValue]) -> None:
    for name, curve in result.curves.items():
        rate, quality = np.array(curve).T
        axes.plot(rate, quality, ".-", color=COLOURS[name], label=LABELS[name], lw=1, ms=4)
    rate, quality = figures["cloud_rate"], figures["quality"]
    axes.errorbar(
        rate.measured,
        quality.measured,
        xerr=[[rate.measured - rate.low], [rate.high - rate.measured]],
        yerr=[[quality.measured - quality.low], [quality.high - quality.measured]],
        fmt="o",
        color="black",
        capsize=3,
        label=f"measured, drafts of {result.fitted.plan.max_draft_tokens}, 95 %",
    )
    axes.set(xlabel="cloud rate", ylabel="quality relative to the cloud's", xlim=(0, 1))
    longest = max(plan.max_draft_tokens for plan in result.fitted.plans)
    axes.set_title(f"held-out questions, draft length {longest} unless named")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)


def _reliability(axes: Axes, result: CalibrationResult) -> None:
    confidences, agrees = result.agreement
    order = np.argsort(confidences, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    axes.plot([0, 1], [0, 1], color="grey", lw=0.8, ls="--", label="perfectly calibrated")
    mapping = result.fitted.mapping
    steps = np.append(mapping.starts, 1.0)
    axes.step(steps, np.append(mapping.values, mapping.values[-1]), where="post", color="#1f77b4", label="isotonic fit")
    axes.plot(
        [confidences[part].mean() for part in bins],
        [agrees[part].mean() for part in bins],
        "o",
        color="black",
        ms=4,
        label="held-out tokens",
    )
    axes.axvline(result.fitted.plan.gate.threshold, color="#2ca02c", lw=1, label="chosen threshold")
    axes.set(xlabel="confidence", ylabel="share of tokens that the cloud agrees with", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title("reliability of the confidence")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
