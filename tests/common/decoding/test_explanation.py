"""What people are told of the policy is what the policy does."""

from dataclasses import replace

import pytest

from common.decoding.drafters.draft_length import draft_length
from common.decoding.estimates import Estimates
from common.decoding.explanation import policy_view
from common.decoding.policy import Plan, choose_verification_mode
from common.types import Draft, Mode, Objective, Verdict, VerificationMode

LOSSLESS = Plan(use_confidence_check=False)
DRAFT = Draft([1, 2], [0.9, 0.9], [0.9, 0.9], False, 10.0)


def measured(round_trip_ms: float = 200.0) -> Estimates:
    estimates = Estimates()
    for rounds_before in range(60):
        verdict = Verdict([1, 2, 3], 2, None, round_trip_ms + 5.0, cloud_ms=5.0)
        estimates.observe_round(DRAFT, verdict, 100, rounds_before)
        estimates.observe_draft(DRAFT, 1)
    return estimates


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (LOSSLESS, "the most tokens a second"),
        (replace(LOSSLESS, objective=Objective.COST), "the objective"),
        (replace(LOSSLESS, verification_mode=VerificationMode.ROUNDS), "named"),
        (Plan(), "what the edge keeps by itself"),
        (Plan(mode=Mode.CLOUD_ONLY), "the cloud writes alone"),
    ],
)
def test_the_mode_is_the_one_that_the_policy_chooses_and_has_its_reason(plan: Plan, reason: str) -> None:
    estimates = measured()
    told = policy_view(plan, estimates).default
    assert told.way == choose_verification_mode(plan, estimates) and reason in told.because
    length = draft_length(plan, 1000, estimates)
    assert (told.draft_tokens, told.draft_above) == (length.limit, length.stop.below)


def test_an_edge_that_answers_alone_has_no_verification_mode() -> None:
    told = policy_view(Plan(mode=Mode.EDGE_ONLY), measured()).default
    assert (told.way, told.because) == (None, "the edge answers alone")


def test_figures_are_given_only_once_they_are_measured() -> None:
    nothing, view = policy_view(Plan(), Estimates()), policy_view(Plan(), measured(200.0))
    assert nothing.round_trip_ms is nothing.step_ms is nothing.draft_token_ms is None
    assert nothing.lossless.tokens_per_second == {} and set(nothing.acceptance) == {None}
    assert view.round_trip_ms == pytest.approx(200.0) and view.step_ms == pytest.approx(5.0, rel=0.2)
    assert view.draft_token_ms == pytest.approx(5.0)
    assert set(view.lossless.tokens_per_second) == {"rounds", "continuous"}
    assert view.acceptance[0] is not None and view.acceptance[0] > 0.9 and view.acceptance[2] is None
