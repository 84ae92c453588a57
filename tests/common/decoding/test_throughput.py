"""Estimates follow what they are told, and the way and length chosen are the best of what they say."""

import random

import pytest

from common.decoding import throughput
from common.decoding.draft_length import alike, expected_tokens
from common.decoding.estimates import PLACES, Acceptance, Estimates, Gain, LinearEstimate
from common.decoding.policy import Plan, draft_length, way_of
from common.types import Mode, Objective, VerificationMode

LOSSLESS = Plan(use_confidence_check=False, max_draft_tokens=16)


def knowing(
    round_trip: float, acceptance: float, step: float = 0.01, draft: float = 0.001, active: int = 0
) -> Estimates:
    known = Estimates(acceptance=Acceptance([acceptance] * PLACES), active=active)
    for drafted in (0, 8) * 50:
        known.round_came(drafted, round_trip + step * (1 + 0.06 * drafted), step * (1 + 0.06 * drafted), 100)
    known.draft.add(draft)
    return known


def test_a_line_is_found_in_noise_and_follows_a_change() -> None:
    rng, line = random.Random(1), LinearEstimate()
    for base, slope in ((5.0, 0.5), (2.0, 3.0)):
        for _ in range(400):
            x = rng.uniform(0, 10)
            line.add(x, base + slope * x + rng.gauss(0, 0.1))
        assert line.at(0) == pytest.approx(base, abs=0.4)
        assert line.slope == pytest.approx(slope, abs=0.1)


def test_round_trip_and_bandwidth_are_told_apart() -> None:
    known = Estimates()
    for size in (100, 20_000, 300, 5_000) * 20:
        known.round_came(4, 0.05 + size / 1e6 + 0.02, 0.02, size)
    assert known.network.at(0) == pytest.approx(0.05, rel=0.02)
    assert known.network.slope == pytest.approx(1e-6, rel=0.02)


def test_while_all_drafts_are_of_one_length_a_token_costs_its_share_of_a_step() -> None:
    line = LinearEstimate(prior=0.06)
    for _ in range(10):
        line.add(8, 1.48)
    assert line.at(0) == pytest.approx(1.0)
    assert line.slope == pytest.approx(0.06)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_acceptance_by_confidence_is_learned_from_verdicts(power: float) -> None:
    rng, acceptance = random.Random(2), Acceptance()
    for _ in range(3000):
        confidences = [rng.uniform(0.3, 1.0) for _ in range(8)]
        right = next((n for n, c in enumerate(confidences) if rng.random() > c**power), 8)
        acceptance.add(confidences, right)
    assert acceptance.power == pytest.approx(power, rel=0.35)


def test_the_length_chosen_is_the_best_of_all() -> None:
    for round_trip in (0.0, 0.014, 0.1):
        for right in (0.3, 0.7, 0.95):
            known = knowing(round_trip, right)
            best = throughput.of_rounds(known, 16, draft_ahead=False)
            for length in range(1, 17):
                seconds = length * 0.001 + round_trip + 0.01 * (1 + 0.06 * length)
                assert best.speed >= expected_tokens(alike(right), length) / seconds * 0.999


def test_drafts_grow_with_the_round_trip_and_with_acceptance() -> None:
    lengths = [throughput.of_rounds(knowing(trip, 0.8), 32, True).length for trip in (0.0, 0.02, 0.1)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    lengths = [throughput.of_rounds(knowing(0.02, right), 32, True).length for right in (0.3, 0.6, 0.9)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_far_away_the_cloud_streams_and_near_by_it_answers_in_rounds() -> None:
    assert way_of(LOSSLESS, knowing(0.0, 0.9)) is VerificationMode.ROUNDS
    assert way_of(LOSSLESS, knowing(0.1, 0.9)) is VerificationMode.CONTINUOUS
    assert way_of(LOSSLESS, knowing(0.05, 0.3)) is VerificationMode.CONTINUOUS


def test_what_a_way_has_brought_counts_against_what_is_expected_of_it_and_is_forgotten_at_length() -> None:
    far = knowing(0.1, 0.9)
    assert way_of(LOSSLESS, far) is VerificationMode.CONTINUOUS
    for _ in range(40):
        far.came(VerificationMode.CONTINUOUS, 40, 100)
    assert way_of(LOSSLESS, far) is VerificationMode.ROUNDS
    for _ in range(400):
        far.came(VerificationMode.ROUNDS, 50, 50)
    assert way_of(LOSSLESS, far) is VerificationMode.CONTINUOUS
    for _ in range(40):
        far.came(VerificationMode.ROUNDS, 100, 40)
    assert way_of(LOSSLESS, far) is VerificationMode.ROUNDS


def test_a_stream_without_drafts_is_expected_to_bring_what_the_cloud_does() -> None:
    unknown = knowing(0.1, 0.01)
    assert throughput.of_stream(unknown, 16).length == 0
    for _ in range(100):
        unknown.came(VerificationMode.CONTINUOUS, 1, 100)
    assert way_of(LOSSLESS, unknown) is VerificationMode.CONTINUOUS


def test_among_others_it_answers_in_rounds_which_take_fewest_steps_of_the_cloud() -> None:
    assert way_of(LOSSLESS, knowing(0.1, 0.9)) is VerificationMode.CONTINUOUS
    assert way_of(LOSSLESS, knowing(0.1, 0.9, active=1)) is VerificationMode.ROUNDS


def test_one_bad_answer_does_not_condemn_a_way() -> None:
    gain = Gain()
    gain.add(1, 30)
    assert 0.9 < gain.value < 1
    for _ in range(200):
        gain.add(15, 30)
    assert gain.value == pytest.approx(0.5, rel=0.01)


def test_where_some_answers_are_known_and_some_are_not_long_runs_are_as_frequent_as_they_are() -> None:
    """Half of the drafts right to the end, half wrong at once: the mean over tokens would have one in 60 whole."""
    rng, acceptance = random.Random(3), Acceptance()
    for _ in range(2000):
        acceptance.add([0.9] * 16, 16 if rng.random() < 0.5 else 0)
    for length in (1, 4, 16):
        assert acceptance.right(length) == pytest.approx(0.5, abs=0.25)
    assert acceptance.right(0) == 1
    assert acceptance.right(40) == pytest.approx(acceptance.right(16), abs=0.1)


def test_on_a_busy_cloud_drafting_stops() -> None:
    assert throughput.of_stream(knowing(0.0, 0.8), 16).length > 0
    assert throughput.of_stream(knowing(0.0, 0.8, active=32), 16).length == 0


@pytest.mark.parametrize(
    ("plan", "way"),
    [
        (Plan(), VerificationMode.ROUNDS),
        (Plan(use_draft_verify=False), VerificationMode.ROUNDS),
        (Plan(mode=Mode.CLOUD_ONLY), VerificationMode.CONTINUOUS),
        (Plan(use_confidence_check=False, way=VerificationMode.CONTINUOUS), VerificationMode.CONTINUOUS),
        (Plan(use_confidence_check=False, way=VerificationMode.ROUNDS), VerificationMode.ROUNDS),
        (Plan(use_confidence_check=False, objective=Objective.COST), VerificationMode.ROUNDS),
    ],
)
def test_the_way_follows_from_the_plan_where_that_leaves_no_choice(plan: Plan, way: VerificationMode) -> None:
    assert way_of(plan, knowing(0.1, 0.5)) is way


def test_nothing_is_drafted_that_is_not_worth_its_time() -> None:
    near, far = (draft_length(LOSSLESS, 50, knowing(trip, 0.8)) for trip in (0.0, 0.1))
    assert 0 < far.stop_below < near.stop_below < 1
    assert draft_length(LOSSLESS, 50, Estimates()).stop_below == 0
