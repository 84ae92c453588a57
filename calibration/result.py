"""The result of a calibration: the chosen plan, its simulated and measured answers, and the figures of a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec import Struct
from numpy import bool_
from numpy.typing import NDArray

from calibration import fit, risk
from calibration.fit import Isotonic, Numbers
from calibration.simulation import Answers
from common.decoding.policy import Plan

Curve = list[tuple[float, float]]
"""Points (cloud rate, quality), in order of the cloud rate."""

MEANINGS = {
    "quality": "right answers, relative to the cloud's",
    "loss": "exact match below the cloud's",
    "risk": "prompts whose answer is worse than the cloud's",
    "cloud_rate": "answer tokens that the cloud computed or verified",
    "cloud_work": "tokens that the cloud computed, relative to the cloud alone",
    "calls_per_token": "cloud calls per answer token",
}
"""The figures of a report, and what each means."""


@dataclass(frozen=True)
class Fitted:
    """All candidate plans, their simulated answers to the fitting part (one row per plan), and the chosen row."""

    plans: Sequence[Plan]
    simulated: Answers
    chosen: int
    mapping: Isotonic
    """From a token's confidence to the probability that the cloud agrees."""

    @property
    def plan(self) -> Plan:
        return self.plans[self.chosen]


@dataclass(frozen=True)
class CalibrationResult:
    """Everything that is reported. `measured` are real answers to the held-out part, `expected` simulated ones."""

    fitted: Fitted
    measured: Answers
    expected: Answers
    curves: dict[str, Curve]
    agreement: tuple[Numbers, NDArray[bool_]]
    """The confidence of every held-out token, [T], and whether the cloud agrees with it, [T]."""

    @property
    def fitted_on(self) -> int:
        """Questions in the fitting part."""
        return int(self.fitted.simulated.worth.shape[-1])

    @property
    def measured_on(self) -> int:
        """Questions in the held-out part."""
        return int(self.measured.worth.shape[-1])


class ReportedValue(Struct):
    """One figure: simulated on the fitting part, simulated and measured (with a 95 % interval) on the held-out one."""

    fitted: float
    expected: float
    measured: float
    low: float
    high: float


def curves(fitted: Fitted, simulate: Callable[[Sequence[Plan]], Answers]) -> dict[str, Curve]:
    """Quality over cloud rate on the held-out part, for the best gates of each kind on the fitting part.

    The first three kinds use the longest draft length, `any_length` whichever is best. `simulate` gives the held-out
    answers of some plans; simulated quality is a lower bound.
    """
    longest = max(plan.max_draft_tokens for plan in fitted.plans)
    kinds: dict[str, Callable[[Plan], bool]] = {
        "token": lambda plan: plan.max_draft_tokens == longest and plan.gate.product_threshold == 0,
        "product": lambda plan: plan.max_draft_tokens == longest and plan.gate.threshold == 0,
        "both": lambda plan: plan.max_draft_tokens == longest,
        "any_length": lambda plan: True,
    }
    found = {}
    for name, belongs in kinds.items():
        rows = [i for i, plan in enumerate(fitted.plans) if belongs(plan)]
        rate, quality = fitted.simulated.cloud_rate[rows], fitted.simulated.quality[rows]
        best = [fitted.plans[rows[i]] for i in fit.frontier(rate, -quality)]
        answers = simulate(best)
        found[name] = sorted(zip(answers.cloud_rate.tolist(), answers.quality.tolist(), strict=True))
    return found


def figures(result: CalibrationResult) -> dict[str, ReportedValue]:
    """Every figure of MEANINGS."""
    return figures_of(result.fitted.simulated[result.fitted.chosen], result.expected, result.measured)


def figures_of(fitted: Answers, expected: Answers, measured: Answers) -> dict[str, ReportedValue]:
    """Every figure of MEANINGS; the risk with Wilson's interval, the others with a bootstrap over the questions."""
    count, found = measured.worth.shape[-1], {}
    for name in MEANINGS:
        if name == "risk":
            low, high = risk.wilson(int(measured.worse.sum()), count)
        else:
            low, high = risk.bootstrap(
                lambda drawn, name=name: getattr(measured.of(drawn), name),  # type: ignore[misc]
                count,
            )
        on_fitted, simulated, real = (float(getattr(answers, name)) for answers in (fitted, expected, measured))
        found[name] = ReportedValue(on_fitted, simulated, real, low, high)
    return found
