"""Estimates follow observations, and the verification mode and draft length chosen are the best for them."""

import random

import pytest

from common.decoding import throughput
from common.decoding.acceptance import PLACES, Acceptance
from common.decoding.draft_yield import expected_tokens, iid_acceptance
from common.decoding.drafters.draft_length import draft_length
from common.decoding.estimates import Estimates
from common.decoding.fading import Gain, LinearEstimate, Mean
from common.decoding.policy import Plan, choose_verification_mode
from common.types import Draft, Mode, Objective, Verdict, VerificationMode

LOSSLESS = Plan(use_confidence_check=False, max_draft_tokens=16)
FOUR = Draft([1, 2, 3, 4], [0.9] * 4, [0.9] * 4, False, 4.0)
"""A draft of four tokens, drawn in 4 ms."""


def knowing(
    round_trip: float, acceptance: float, step: float = 0.01, draft: float = 0.001, active: int = 0
) -> Estimates:
    verify = LinearEstimate()
    for drafted in (0, 8) * 50:
        verify.add(drafted, step * (1 + 0.06 * drafted))
    network = LinearEstimate()
    network.add(100, round_trip)
    return Estimates(network, Mean(draft), verify, Acceptance([acceptance] * PLACES), active, Mean(100.0))


def test_a_line_is_found_in_noise_and_follows_a_change() -> None:
    rng, line = random.Random(1), LinearEstimate()
    for base, slope in ((5.0, 0.5), (2.0, 3.0)):
        for _ in range(400):
            x = rng.uniform(0, 10)
            line.add(x, base + slope * x + rng.gauss(0, 0.1))
        assert line.at(0) == pytest.approx(base, abs=0.4)
        assert line.slope == pytest.approx(slope, abs=0.1)


def test_round_trip_and_bandwidth_are_told_apart() -> None:
    estimates = Estimates()
    for size in (100, 20_000, 300, 5_000) * 20:
        estimates.observe_round(FOUR, Verdict([], 4, None, 70 + size / 1e3, cloud_ms=20.0), size, rounds_before=1)
    assert estimates.network.at(0) == pytest.approx(0.05, rel=0.02)
    assert estimates.network.slope == pytest.approx(1e-6, rel=0.02)


def test_the_handshakes_of_a_stream_are_two_round_trips_and_an_open_connection_teaches_nothing() -> None:
    estimates = Estimates()
    estimates.observe_handshakes(0.0)
    assert not estimates.network.measured
    estimates.observe_handshakes(0.2)
    assert estimates.round_trip == pytest.approx(0.1)


def test_the_first_draft_and_the_first_round_of_an_answer_teach_no_times_as_they_include_the_prefill() -> None:
    estimates = Estimates()
    estimates.observe_draft(FOUR, drawn_before=0)
    estimates.observe_round(FOUR, Verdict([], 2, None, 90.0, cloud_ms=20.0), 500, rounds_before=0)
    assert not estimates.network.measured and not estimates.verify.measured
    assert estimates.draft_seconds == 0
    assert estimates.acceptance.chances[0] > 0.8 > estimates.acceptance.chances[2], "of acceptance it teaches all"
    estimates.observe_draft(FOUR, drawn_before=4)
    estimates.observe_round(FOUR, Verdict([], 2, None, 90.0, cloud_ms=20.0), 500, rounds_before=1)
    assert estimates.draft_seconds == pytest.approx(0.001)
    assert estimates.round_trip == pytest.approx(0.07)
    assert estimates.verify.at(4) == pytest.approx(0.02)


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
            estimates = knowing(round_trip, right)
            best = throughput.of_rounds(estimates, 16, draft_ahead=False)
            for length in range(1, 17):
                seconds = length * 0.001 + round_trip + 0.01 * (1 + 0.06 * length)
                assert best.speed >= expected_tokens(iid_acceptance(right), length) / seconds * 0.999


def test_drafts_grow_with_the_round_trip_and_with_acceptance() -> None:
    lengths = [throughput.of_rounds(knowing(trip, 0.8), 32, True).length for trip in (0.0, 0.02, 0.1)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    lengths = [throughput.of_rounds(knowing(0.02, right), 32, True).length for right in (0.3, 0.6, 0.9)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_far_away_the_cloud_streams_and_near_by_it_answers_in_rounds() -> None:
    assert choose_verification_mode(LOSSLESS, knowing(0.0, 0.9)) is VerificationMode.ROUNDS
    assert choose_verification_mode(LOSSLESS, knowing(0.1, 0.9)) is VerificationMode.CONTINUOUS
    assert choose_verification_mode(LOSSLESS, knowing(0.05, 0.3)) is VerificationMode.CONTINUOUS


def test_the_observed_speed_of_a_mode_counts_against_its_expected_one_and_is_forgotten_slowly() -> None:
    far = knowing(0.1, 0.9)
    assert choose_verification_mode(LOSSLESS, far) is VerificationMode.CONTINUOUS
    for _ in range(40):
        far.observe_speed(VerificationMode.CONTINUOUS, 40, 100)
    assert choose_verification_mode(LOSSLESS, far) is VerificationMode.ROUNDS
    for _ in range(400):
        far.observe_speed(VerificationMode.ROUNDS, 50, 50)
    assert choose_verification_mode(LOSSLESS, far) is VerificationMode.CONTINUOUS
    for _ in range(40):
        far.observe_speed(VerificationMode.ROUNDS, 100, 40)
    assert choose_verification_mode(LOSSLESS, far) is VerificationMode.ROUNDS


def test_a_stream_without_drafts_is_expected_to_be_as_fast_as_the_cloud() -> None:
    unlikely = knowing(0.1, 0.01)
    assert throughput.of_stream(unlikely, 16).length == 0
    for _ in range(100):
        unlikely.observe_speed(VerificationMode.CONTINUOUS, 1, 100)
    assert choose_verification_mode(LOSSLESS, unlikely) is VerificationMode.CONTINUOUS


def test_beside_others_a_step_is_longer_and_a_draft_token_of_all_costs_more_of_it() -> None:
    alone, four = knowing(0.1, 0.9, active=1), knowing(0.1, 0.9, active=4)
    assert alone.step_seconds == pytest.approx(0.01, rel=1e-3)
    assert four.step_seconds == pytest.approx(0.01 * (1 + 3 * 0.06), rel=1e-3)
    assert four.step_seconds * four.token_steps == pytest.approx(0.01 * 4 * 0.06, rel=1e-3)


def test_a_round_beside_others_waits_half_a_step_more_than_a_stream_and_teaches_so() -> None:
    alone, four = knowing(0.1, 0.9, active=1), knowing(0.1, 0.9, active=4)
    assert alone.verify_seconds == alone.step_seconds
    assert four.verify_seconds == pytest.approx(1.5 * four.step_seconds)
    proposed, cloud_ms = Draft([1], [0.9], [0.9], False, 1.0), four.verify_seconds * (1 + four.token_steps) * 1e3
    before = four.step_seconds
    for _ in range(50):
        verdict = Verdict([1, 2], 1, None, cloud_ms + 100, cloud_ms=cloud_ms)
        four.observe_round(proposed, verdict, 100, rounds_before=1, active=4)
    assert four.step_seconds == pytest.approx(before, rel=1e-3)


def test_a_step_that_others_were_in_teaches_how_long_one_waits_and_not_what_a_draft_token_costs() -> None:
    estimates = knowing(0.1, 0.9)
    for _ in range(200):
        estimates.observe_stream(steps=11, drafted=0, seconds=10 * 0.03, active=4)
    assert estimates.token_steps == pytest.approx(0.06, rel=1e-3)
    assert estimates.step_seconds == pytest.approx(0.01, rel=1e-3)
    estimates.active = 4
    assert estimates.step_seconds == pytest.approx(0.03, rel=1e-3)


def test_what_a_busy_edge_guessed_of_its_first_steps_gives_way_to_the_first_that_it_measures() -> None:
    estimates = Estimates()
    estimates.observe_stream(steps=11, drafted=20, seconds=10.0, active=4)
    assert 0.1 < estimates.step_seconds < 1.0
    estimates.observe_stream(steps=11, drafted=0, seconds=0.1, active=1)
    assert estimates.step_seconds == pytest.approx(0.01)


def test_no_draft_token_costs_more_than_a_step_by_itself() -> None:
    estimates = Estimates()
    for drafted, seconds in ((2, 0.1), (4, 0.2)) * 20:
        estimates.observe_stream(steps=2, drafted=2 * drafted, seconds=seconds, active=1)
    assert estimates.step_seconds > 0.02
    assert estimates.token_steps <= 1.0


def test_one_slow_answer_does_not_rule_out_a_mode() -> None:
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
        assert acceptance.prefix_acceptance(length) == pytest.approx(0.5, abs=0.25)
    assert acceptance.prefix_acceptance(0) == 1
    assert acceptance.prefix_acceptance(40) == pytest.approx(acceptance.prefix_acceptance(16), abs=0.1)


def test_on_a_busy_cloud_drafting_stops() -> None:
    assert throughput.of_stream(knowing(0.0, 0.8), 16).length > 0
    assert throughput.of_stream(knowing(0.0, 0.8, active=32), 16).length == 0


@pytest.mark.parametrize(
    ("plan", "mode"),
    [
        (Plan(), VerificationMode.ROUNDS),
        (Plan(use_draft_verify=False), VerificationMode.ROUNDS),
        (Plan(mode=Mode.CLOUD_ONLY), VerificationMode.CONTINUOUS),
        (Plan(use_confidence_check=False, verification_mode=VerificationMode.CONTINUOUS), VerificationMode.CONTINUOUS),
        (Plan(use_confidence_check=False, verification_mode=VerificationMode.ROUNDS), VerificationMode.ROUNDS),
        (Plan(use_confidence_check=False, objective=Objective.COST), VerificationMode.ROUNDS),
    ],
)
def test_the_plan_decides_the_mode_where_it_leaves_no_choice(plan: Plan, mode: VerificationMode) -> None:
    assert choose_verification_mode(plan, knowing(0.1, 0.5)) is mode


def test_no_token_is_drafted_that_costs_more_time_than_it_saves() -> None:
    near, far = (draft_length(LOSSLESS, 50, knowing(trip, 0.8)) for trip in (0.0, 0.1))
    assert 0 < far.stop.below < near.stop.below < 1
    assert draft_length(LOSSLESS, 50, Estimates()).stop.below == 0


def test_an_engine_that_is_fast_beside_its_network_is_judged_at_once() -> None:
    """The tokens in flight are the round trip over a step: without a bound, the sum over them would hardly end."""
    for step in (1e-3, 1e-9, 0.0):
        found = throughput.of_stream(knowing(round_trip=0.1, acceptance=0.9, step=step), 16)
        assert found.speed > 0
