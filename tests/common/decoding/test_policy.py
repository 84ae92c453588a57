"""Decisions, from confidences and plan alone."""

import pytest

from common.config_schema import Config
from common.decoding.draft_yield import EarlyStop
from common.decoding.drafters.draft_length import Length, draft_length
from common.decoding.estimates import AnswerEstimates, Estimates
from common.decoding.policy import (
    JUDGED_VERDICTS,
    Decision,
    Escalation,
    Gate,
    GatedPace,
    Plan,
    confident_tokens,
    decide,
    default_plan,
    gate_in_vain,
)
from common.types import NEVER, Mode, Objective, StopRule, VerificationMode


@pytest.mark.parametrize(
    ("confidences", "gate", "kept"),
    [
        ([], Gate(0.5, 0.0), 0),
        ([0.9, 0.9, 0.9], Gate(0.8, 0.0), 3),
        ([0.9, 0.7, 0.9], Gate(0.8, 0.0), 1),
        ([0.9, 0.9, 0.9], Gate(0.8, 0.75), 2),
        ([0.8], Gate(0.8, 0.8), 1),
    ],
)
def test_confident_tokens_end_at_either_threshold(confidences: list[float], gate: Gate, kept: int) -> None:
    assert confident_tokens(confidences, gate) == kept


@pytest.mark.parametrize(
    ("f1", "f2", "decision"),
    [
        (True, True, Decision(1, Escalation.VERIFY)),
        (True, False, Decision(1, Escalation.GENERATE)),
        (False, True, Decision(0, Escalation.VERIFY)),
        (False, False, Decision(3, Escalation.NOTHING)),
    ],
)
def test_the_toggles_decide_as_in_the_table_of_the_docs(f1: bool, f2: bool, decision: Decision) -> None:
    plan = Plan(use_confidence_check=f1, use_draft_verify=f2)
    assert decide([0.99, 0.1, 0.99], plan) == decision


def test_the_default_config_and_the_default_plan_agree() -> None:
    assert default_plan(Config()) == Plan()


def test_every_plan_that_asks_the_cloud_asks_it_when_the_edge_drafts_nothing() -> None:
    assert decide([], Plan()).ask is Escalation.GENERATE
    assert decide([], Plan(use_confidence_check=False)).ask is Escalation.GENERATE
    assert decide([], Plan(mode=Mode.CLOUD_ONLY)).ask is Escalation.GENERATE
    assert decide([], Plan(mode=Mode.EDGE_ONLY)).ask is Escalation.NOTHING


def test_only_full_verification_and_the_cloud_alone_are_lossless() -> None:
    assert Plan(use_confidence_check=False).lossless
    assert Plan(mode=Mode.CLOUD_ONLY).lossless
    assert not Plan().lossless
    assert not Plan(use_draft_verify=False).lossless
    assert not Plan(use_confidence_check=False, use_draft_verify=False).lossless
    assert not Plan(mode=Mode.EDGE_ONLY, use_confidence_check=False).lossless


def test_a_draft_leaves_room_for_the_token_that_its_verify_adds() -> None:
    plan = Plan(use_confidence_check=False, max_draft_tokens=8, objective=Objective.COST)
    estimates = Estimates()
    assert [draft_length(plan, remaining, estimates).limit for remaining in (1, 2, 9, 50)] == [0, 1, 8, 8]


def drafted(confidences: list[float], rule: StopRule) -> int:
    early = EarlyStop(rule)
    return next((n for n, confidence in enumerate(confidences, 1) if early.ends_with(confidence)), len(confidences))


def test_a_gated_draft_goes_on_past_the_gate_only_while_it_is_likely_to_be_accepted() -> None:
    rule = StopRule(0.5, gate=Gate(0.8, 0.0))
    assert drafted([0.9] * 12, rule) == 12, "what the edge keeps needs no verdict"
    assert drafted([0.9] * 12 + [0.4, 0.9], rule) == 13
    assert drafted([0.9, 0.7, 0.9, 0.7, 0.9], rule) == 4
    assert drafted([0.9] * 12, StopRule(0.5, gate=Gate(0.8, 0.7))) > drafted([0.9] * 12, StopRule(0.5)) == 7


def test_where_the_cloud_cannot_verify_a_gated_draft_ends_at_the_gate() -> None:
    length = draft_length(Plan(use_draft_verify=False), 50, Estimates())
    assert drafted([0.9, 0.9, 0.7, 0.9], length.stop) == 3


def test_what_the_plan_says_of_a_drafts_end_needs_no_estimates() -> None:
    for plan in (Plan(draft_stop=StopRule(0.4)), Plan(use_confidence_check=False, draft_stop=StopRule(0.4))):
        assert draft_length(plan, 50, Estimates()).stop == StopRule(0.4)


def test_a_draft_before_any_measurement_has_a_length_that_depends_on_nothing() -> None:
    """So rounds of an answer that a seed is to repeat begin at the same positions, whatever the clock says."""
    plan, answer = Plan(use_confidence_check=False), AnswerEstimates(Estimates())
    before = draft_length(plan, 50, answer.current())
    answer.acceptance.add([0.9] * 6, 1)
    assert draft_length(plan, 50, answer.current()) == before == Length(before.limit, NEVER)
    assert 0 < before.limit < plan.max_draft_tokens


STEP = 0.1
"""Seconds of the cloud's step: its own speed is ten tokens a second."""


def measured() -> Estimates:
    estimates = Estimates()
    estimates.verify.add(0.0, STEP)
    return estimates


@pytest.mark.parametrize(
    ("pace", "vain"),
    [
        (GatedPace(tokens=10, computed=12, verdicts=5, seconds=1.2), True),
        (GatedPace(tokens=10, computed=12, verdicts=5, seconds=0.8), False),  # faster than the cloud
        (GatedPace(tokens=10, computed=9, verdicts=5, seconds=1.2), False),  # spares the cloud a token
        (GatedPace(tokens=10, computed=12, verdicts=JUDGED_VERDICTS - 1, seconds=1.2), False),  # too early to say
    ],
)
def test_a_gate_is_in_vain_where_it_saves_neither_time_nor_the_clouds_work(pace: GatedPace, vain: bool) -> None:
    assert gate_in_vain(Plan(), pace, measured()) is vain


def test_a_gate_stays_where_rounds_or_the_least_cost_are_wanted_or_nothing_is_measured() -> None:
    pace = GatedPace(tokens=10, computed=12, verdicts=5, seconds=1.2)
    assert not gate_in_vain(Plan(verification_mode=VerificationMode.ROUNDS), pace, measured())
    assert not gate_in_vain(Plan(objective=Objective.COST), pace, measured())
    assert not gate_in_vain(Plan(use_draft_verify=False), pace, measured())
    assert not gate_in_vain(Plan(), pace, Estimates())
