"""What an answer is worth beside the right one, 0 to 1: exact match, token F1, ROUGE-L, accuracy. Knows only text."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

LABELS = ({"yes": "yes", "true": "yes", "no": "no", "false": "no"}, {"positive": "positive", "negative": "negative"})
"""Families of labels, each with the words that stand for it."""

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(metric: str, given: str, right: str) -> float:
    """0 to 1. `metric` is one of METRICS."""
    return METRICS[metric](given, right)


def exact_match(given: str, right: str) -> float:
    """The same text; space around either does not count."""
    return float(given.strip() == right.strip())


def contains(given: str, right: str) -> float:
    """The right text is somewhere in it; space around the right one does not count."""
    return float(right.strip() in given)


def token_f1(given: str, right: str) -> float:
    """F1 of the words as bags, after SQuAD's normalisation (Rajpurkar et al. 2016); of two empty ones 1."""
    ours, theirs = squad_words(given), squad_words(right)
    if not ours or not theirs:
        return float(ours == theirs)
    return _f1((Counter(ours) & Counter(theirs)).total(), len(ours), len(theirs))


def rouge_l(given: str, right: str) -> float:
    """F-measure of the longest common subsequence of words (ROUGE-L; Lin 2004, section 3), beta 1, no stemming."""
    ours, theirs = words(given), words(right)
    if not ours or not theirs:
        return float(ours == theirs)
    return _f1(longest_common(ours, theirs), len(ours), len(theirs))


def accuracy(given: str, right: str) -> float:
    """The first label that the answer names is the right one; without a family of labels, it begins with its words."""
    ours, theirs = squad_words(given), squad_words(right)
    for family in LABELS:
        if theirs and theirs[0] in family:
            named = next((family[word] for word in ours if word in family), None)
            return float(named == family[theirs[0]])
    return float(ours[: len(theirs)] == theirs)


def agreement(given: str, other: str) -> float:
    """Whether two ways of answering gave the same text, to the character."""
    return float(given == other)


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "exact": exact_match,  # its name where a gate is calibrated
    "contains": contains,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "accuracy": accuracy,
}


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def squad_words(text: str) -> list[str]:
    """Lower case, without punctuation and articles, as SQuAD's own evaluation does it."""
    plain = text.lower().translate(WITHOUT_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table in one integer's bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & every
    return len(one) - row.bit_count()


def _f1(common: int, ours: int, theirs: int) -> float:
    """The harmonic mean of common / ours and common / theirs."""
    return 2 * common / (ours + theirs)
