"""Scores of answers: bounds, symmetry, and equality with plain, slow implementations."""

import random

import pytest

from experiments.questions.text_metrics import METRICS, accuracy, longest_common, rouge_l, score, token_f1

WORDS = "the cat sat on a mat and then it ran".split()


def texts(seed: int, longest: int = 12) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choices(WORDS, k=rng.randint(0, longest)))


def slow_longest_common(one: list[str], other: list[str]) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_between_0_and_1_and_1_for_the_right_answer_itself(metric: str) -> None:
    for seed in range(200):
        given, right = texts(seed), texts(seed + 1000)
        assert 0 <= score(metric, given, right) <= 1
        assert score(metric, right, right) == 1
        assert score(metric, f" {right}\n", right) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_answer_scores_0(metric: str) -> None:
    assert score(metric, "", "Paris") == 0


@pytest.mark.parametrize("metric", ["token_f1", "rouge_l"])
def test_f_measures_are_symmetric(metric: str) -> None:
    for seed in range(200):
        given, right = texts(seed), texts(seed + 1000)
        assert score(metric, given, right) == score(metric, right, given)


def test_the_longest_common_subsequence_equals_that_of_the_plain_table() -> None:
    for seed in range(300):
        one, other = texts(seed, 90).split(), texts(seed + 1000, 90).split()
        assert longest_common(one, other) == slow_longest_common(one, other)


def test_order_counts_for_rouge_and_not_for_token_f1() -> None:
    given, right = "mat cat sat", "cat sat mat"
    assert token_f1(given, right) == 1
    assert rouge_l(given, right) == pytest.approx(2 / 3)


def test_rouge_equals_lins_own_example() -> None:
    right = "police killed the gunman"  # Lin 2004, section 3.1: precision and recall 3/4, and 2/4
    assert rouge_l("police kill the gunman", right) == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", right) == pytest.approx(2 / 4)


def test_token_f1_normalises_as_squad_does() -> None:
    assert token_f1("The  Eiffel-Tower!", "an eiffeltower") == 1
    assert token_f1("in Paris, France", "Paris") == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))


@pytest.mark.parametrize(
    ("given", "right", "worth"),
    [
        ("Yes, it is.", "yes", 1),
        ("The answer is: NO", "no", 1),
        ("True.", "yes", 1),
        ("no. Or yes?", "yes", 0),
        ("I do not know", "no", 0),
        ("nothing", "no", 0),
        ("This review is Positive", "positive", 1),
        ("negative", "positive", 0),
        ("B. because", "b", 1),
        ("C", "b", 0),
    ],
)
def test_accuracy_looks_for_the_first_label(given: str, right: str, worth: float) -> None:
    assert accuracy(given, right) == worth
