"""Scores an answer against the right one, 0 to 1: exact match, token F1, ROUGE-L, accuracy."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

LABELS = ({"yes": "yes", "true": "yes", "no": "no", "false": "no"}, {"positive": "positive", "negative": "negative"})
"""Families of labels: the words of each family, and the label that a word stands for."""

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(metric: str, given: str, right: str) -> float:
    """The score of `given`, 0 to 1. `metric` is one of METRICS."""
    return METRICS[metric](given, right)


def exact_match(given: str, right: str) -> float:
    """1 for the same text, without surrounding white space."""
    return float(given.strip() == right.strip())


def contains(given: str, right: str) -> float:
    """1 if the right text, without surrounding white space, occurs in the answer."""
    return float(right.strip() in given)


def token_f1(given: str, right: str) -> float:
    """F1 of the bags of words after SQuAD's normalisation (Rajpurkar et al. 2016); 1 for two empty texts."""
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
    """1 if the first label in the answer is right; without labels, 1 if the answer begins with the right words."""
    ours, theirs = squad_words(given), squad_words(right)
    for family in LABELS:
        if theirs and theirs[0] in family:
            named = next((family[word] for word in ours if word in family), None)
            return float(named == family[theirs[0]])
    return float(ours[: len(theirs)] == theirs)


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "exact": exact_match,  # the calibration's name for it
    "contains": contains,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "accuracy": accuracy,
}


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def squad_words(text: str) -> list[str]:
    """Words in lower case without punctuation and articles, as in SQuAD's own evaluation."""
    plain = text.lower().translate(WITHOUT_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence; the bits of an integer are a row of the table (Hyyrö 2004)."""
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
