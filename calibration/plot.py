"""Draws a calibration: quality against cloud rate for each kind of gate, and what confidences are worth."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture

from calibration.report import ReportedValue, CalibrationResult

COLOURS = {"token": "#1f77b4", "product": "#ff7f0e", "both": "#2ca02c", "any_length": "#9467bd"}
LABELS = {
    "token": "token threshold only",
    "product": "product threshold only",
    "both": "both thresholds",
    "any_length": "both, and the draft length",
}
BINS = 15
"""Of equal numbers of held-out tokens, in the right picture."""


def draw(outcome: CalibrationResult, figures: dict[str, ReportedValue]) -> bytes:
    """Two pictures side by side, as PNG."""
    picture = Picture(figsize=(12, 5), layout="constrained")
    left, right = picture.subplots(1, 2)
    _curves(left, outcome, figures)
    _reliability(right, outcome)
    data = io.BytesIO()
    FigureCanvasAgg(picture).print_png(data)
    return data.getvalue()


def _curves(axes: Axes, outcome: CalibrationResult, figures: dict[str, ReportedValue]) -> None:
    for name, curve in outcome.curves.items():
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
        label=f"measured, drafts of {outcome.fitted.plan.max_draft_tokens}, 95 %",
    )
    axes.set(xlabel="cloud rate", ylabel="quality relative to the cloud's", xlim=(0, 1))
    longest = max(plan.max_draft_tokens for plan in outcome.fitted.tried)
    axes.set_title(f"held-out questions, drafts of {longest} where nothing else is said")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)


def _reliability(axes: Axes, outcome: CalibrationResult) -> None:
    confidences, agrees = outcome.agreement
    order = np.argsort(confidences, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    axes.plot([0, 1], [0, 1], color="grey", lw=0.8, ls="--", label="as confident as right")
    mapping = outcome.fitted.mapping
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
    axes.axvline(outcome.fitted.plan.gate.threshold, color="#2ca02c", lw=1, label="threshold taken")
    axes.set(xlabel="confidence", ylabel="share that the cloud agrees with", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title("what a token's confidence is worth")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
