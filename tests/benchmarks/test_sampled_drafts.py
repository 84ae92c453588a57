"""Sampled answers: expected times agree with drawn rounds, and a model agrees with itself."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.policy import sampled_answers, trace
from benchmarks.policy.sampled import described, groups, ratio, speeds
from benchmarks.policy.sampled_answers import SampledAnswer, SampledPair
from benchmarks.policy.sampling import KINDS
from benchmarks.policy.trace import PairTimes
from common.errors import ConfigError
from common.types import Sampling
from tests.conftest import CLOUD_MODEL

TRACES = Path(__file__).parent / "traces"
TIMES = PairTimes("made up", draft=0.01, step=0.1, verified=0.004, overhead=0.002)
EDGE = CLOUD_MODEL.parent / "demo-edge.gguf"
SAMPLED = Sampling(temperature=1.0)


def answer(chances: list[float], confidences: list[float] | None = None) -> SampledAnswer:
    found = confidences or chances
    return SampledAnswer("", 0, SAMPLED, found, dict.fromkeys(KINDS, chances), dict.fromkeys(KINDS, 0.5))


def drawn_seconds(chances: list[float], lengths: list[int], rng: np.random.Generator) -> float:
    """One answer, in rounds whose acceptance is drawn."""
    at, spent = 0, 0.0
    while at < len(chances):
        length = min(lengths[at], len(chances) - at - 1)
        right = rng.random(length) < chances[at : at + length]
        spent += TIMES.step + 0.05 + TIMES.overhead + length * (TIMES.draft + TIMES.verified)
        at += int(length if right.all() else right.argmin()) + 1
    return spent


@pytest.mark.parametrize("length", [0, 1, 3, 8])
def test_the_expected_time_is_the_mean_of_drawn_rounds(length: int) -> None:
    rng = np.random.default_rng(length)
    chances = list(rng.random(20) ** 0.5)
    lengths = [max(0, length - n % 2) for n in range(20)]
    times = [drawn_seconds(chances, lengths, rng) for _ in range(4000)]
    expected = answer(chances).seconds("greedy", lengths, TIMES, 0.05)
    assert expected == pytest.approx(np.mean(times), abs=5 * np.std(times) / 4000**0.5 + 1e-9)


def test_what_is_always_right_takes_the_fewest_rounds_and_what_never_is_one_for_each_token() -> None:
    right, wrong = ([chance] * 20 for chance in (1.0, 0.0))
    round = TIMES.step + TIMES.overhead + 4 * (TIMES.draft + TIMES.verified)
    assert answer(right).seconds("greedy", [4] * 20, TIMES, 0.0) == pytest.approx(4 * round)
    assert answer(wrong).seconds("greedy", [0] * 20, TIMES, 0.0) == pytest.approx(20 * (TIMES.step + TIMES.overhead))
    found = speeds([answer(right), answer(wrong)], TIMES, 0.0)["drawn"]
    assert found.stopping.sum() < found.fixed.sum(), "confidences tell the two apart"


def test_a_draft_stops_with_the_token_that_makes_it_unlikely() -> None:
    assert answer([0.5] * 5, [0.9, 0.5, 0.9, 0.9, 0.9]).stopping(0.6) == [2, 1, 3, 2, 1]
    assert max(answer([0.5] * 40, [1.0] * 40).stopping(0.6)) == sampled_answers.LONGEST


def test_a_ratio_names_both_speeds_and_how_settings_are_written() -> None:
    assert ratio(np.array([2.0, 4.0]), np.array([1.0, 2.0])) == "2.00 (2.00-2.00)"
    assert described(Sampling(temperature=0.7, top_p=0.8, top_k=20)) == "0.7, top-p 0.8, top-k 20"


def test_drafts_of_the_same_model_are_always_accepted_but_for_greedy_ones() -> None:
    samplings = [SAMPLED, Sampling(temperature=0.7, top_p=0.8, top_k=20)]
    pair = SampledPair(EDGE, EDGE, samplings)
    prompt = pair.cloud.vocabulary.tokenize(b"<|user|>Explain gravity<|assistant|>", True, True)
    found = list(pair.answers("prose", 1, prompt, 12))
    assert [one.sampling for one in found] == samplings
    for one in found:
        assert min(one.acceptance["drawn"], one.acceptance["coupled"]) > 0.999 > one.acceptance["greedy"]
        assert min(one.accepted["drawn"]) > 0.99 and set(one.accepted["greedy"]) <= {0.0, 1.0}


def test_the_recorded_answers_say_that_drawn_drafts_are_accepted_more_often_and_gain_less_where_drafts_stop() -> None:
    times, _ = trace.read(TRACES / "qwen2.5-coder.jsonl")
    found = dict(groups(sampled_answers.read(TRACES / "sampled-qwen2.5-coder.jsonl")))
    assert {text for text, _ in found} == {"code", "prose", "edit", "all"}
    answers = found["all", "1"]
    greedy, coupled, sparse = (
        np.mean([one.acceptance[draft] for one in answers]) for draft in ("greedy", "coupled", "sparse 20")
    )
    assert greedy < coupled < sparse
    of = speeds(answers, times, 0.0)
    base, drawn = of["greedy"], of["sparse 20"]
    assert 1.05 < base.stopping.sum() / drawn.stopping.sum() < base.fixed.sum() / drawn.fixed.sum()


def test_a_file_that_has_no_answers_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"kind": "x"}')
    with pytest.raises(ConfigError, match=r"bad\.jsonl"):
        sampled_answers.read(tmp_path / "bad.jsonl")
