"""Acceptance is learned within an answer, and across answers; what is known outlives the server."""

import random
from pathlib import Path

import pytest

from common.decoding import saved_estimates
from common.decoding.acceptance import DOUBT, Acceptance, TextAcceptance
from common.decoding.draft_yield import EarlyStop
from common.decoding.drafters.draft_length import draft_length
from common.decoding.estimates import AnswerEstimates, Estimates
from common.decoding.policy import Plan, choose_verification_mode
from common.types import Draft, Verdict, VerificationMode

LOSSLESS = Plan(use_confidence_check=False)
SURE = [0.9] * 16
DRAFT = Draft(list(range(8)), [0.9] * 8, [0.9] * 8, False, 8.0)


def measured(round_trip_ms: float = 10.0) -> Estimates:
    """An edge whose drafts of confidence 0.9 are accepted 9 times of 10, over many answers."""
    rng, estimates = random.Random(1), Estimates()
    for _ in range(300):
        right = next((n for n in range(8) if rng.random() > 0.9), 8)
        estimates.observe_draft(DRAFT, drawn_before=1)
        latency = 10.0 + 0.6 * 8 + round_trip_ms
        estimates.observe_round(DRAFT, Verdict([], right, None, latency, cloud_ms=10.0 + 0.6 * 8), 100, rounds_before=1)
    return estimates


def drafted(estimates: Estimates) -> int:
    length = draft_length(LOSSLESS, 100, estimates)
    early = EarlyStop(length.stop)
    return next((n for n, c in enumerate(SURE[: length.limit], 1) if early.ends_with(c)), length.limit)


def test_drafts_get_shorter_within_five_rounds_of_an_answer_whose_tokens_are_rejected_and_longer_again() -> None:
    everything = measured()
    answer = AnswerEstimates(everything)
    before = drafted(answer.current())
    for _ in range(5):
        answer.acceptance.add(SURE[: drafted(answer.current())], 0)
    assert drafted(answer.current()) <= before / 2
    assert drafted(AnswerEstimates(everything).current()) == before, "other answers are not judged by this one"
    for _ in range(20):
        answer.acceptance.add(SURE, 16)
    assert drafted(answer.current()) >= before


def test_an_answer_that_is_accepted_more_than_others_is_drafted_further() -> None:
    everything = measured()
    answer = AnswerEstimates(everything)
    before = drafted(answer.current())
    for _ in range(5):
        answer.acceptance.add(SURE, 16)
    assert drafted(answer.current()) > before


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_an_answers_own_power_is_found_from_a_hundred_tokens_whatever_was_known(power: float) -> None:
    rng, everything = random.Random(3), Acceptance()
    text = TextAcceptance(everything)
    errors = []
    for _ in range(200):
        confidences = [rng.uniform(0.3, 1.0) for _ in range(4)]
        right = next((n for n, c in enumerate(confidences) if rng.random() > (c * 2.718281828**-DOUBT) ** power), 4)
        text.add(confidences, right)
        errors.append(text.power / power)
    assert sum(errors[50:]) / 150 == pytest.approx(1.0, rel=0.25)


def test_an_answer_goes_on_in_the_mode_that_its_own_text_speaks_for() -> None:
    everything = measured(round_trip_ms=10.0)
    assert choose_verification_mode(LOSSLESS, everything) is VerificationMode.ROUNDS
    answer = AnswerEstimates(everything)
    for _ in range(30):
        answer.acceptance.add(SURE[:1], 0)
    assert choose_verification_mode(LOSSLESS, answer.current()) is VerificationMode.CONTINUOUS


def test_a_restarted_edge_knows_what_it_knew(tmp_path: Path) -> None:
    before = measured()
    saved_estimates.save(before, tmp_path, "pair")
    after = saved_estimates.load(tmp_path, "pair")
    assert after == before != Estimates()
    assert drafted(after) == drafted(before)
    assert [path.name for path in tmp_path.iterdir()] == [saved_estimates.FILE]


def test_what_was_learned_with_another_pair_is_not_used(tmp_path: Path) -> None:
    saved_estimates.save(measured(), tmp_path, "one pair")
    assert saved_estimates.load(tmp_path, "another") == Estimates()


@pytest.mark.parametrize("change", [b"", b"{", b"null", b'{"pair":"pair"}', b"\xff\xfe"])
def test_a_damaged_file_is_dropped_and_written_anew(tmp_path: Path, change: bytes) -> None:
    (tmp_path / saved_estimates.FILE).write_bytes(change)
    assert saved_estimates.load(tmp_path, "pair") == Estimates()
    saved_estimates.save(measured(), tmp_path, "pair")
    assert saved_estimates.load(tmp_path, "pair") == measured()


@pytest.mark.parametrize("wrong", ["-0.5", "1.5", "1e999", '"x"'])
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, wrong: str) -> None:
    saved_estimates.save(measured(), tmp_path, "pair")
    file = tmp_path / saved_estimates.FILE
    text = file.read_text()
    begin = text.index('"chances":[') + len('"chances":[')
    file.write_text(text[:begin] + wrong + text[text.index(",", begin) :])
    assert saved_estimates.load(tmp_path, "pair") == Estimates()


def test_a_folder_that_cannot_be_written_to_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    saved_estimates.save(measured(), tmp_path / "file", "pair")
    assert saved_estimates.load(tmp_path / "file", "pair") == Estimates()
