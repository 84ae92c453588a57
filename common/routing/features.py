"""Cheap features of a request, from which a router guesses whether the edge's answer will do: pure functions."""

import math
import re
from collections.abc import Callable, Sequence

Features = dict[str, float]

SURE = 1e-4
"""Confidences are cut this far from 0 and 1: log-odds of more than 9 say no more."""
LOOKED_AT = 4096
"""Characters of a text that are looked at, of a longer one its first and its last: a request waits a millisecond."""
PEOPLE_AND_PLACES = ("who", "when", "where", "which")
EXPLANATIONS = ("why", "how", "explain", "describe", "compare")
CODE = re.compile(r"[{}\[\]()<>=;_\\`#$&|^~]")
NUMBER = re.compile(r"\d+")

OF_TEXT: dict[str, Callable[[str], float]] = {
    "log_lines": lambda text: math.log1p(text.count("\n")),
    "log_numbers": lambda text: math.log1p(len(NUMBER.findall(text))),
    "longest_number": lambda text: float(min(max(map(len, NUMBER.findall(text)), default=0), 20)),
    "digit_share": lambda text: _share(text, str.isdigit),
    "punctuation_share": lambda text: _share(text, lambda sign: not (sign.isalnum() or sign.isspace())),
    "code_share": lambda text: _share(text, lambda sign: CODE.match(sign) is not None),
    "capital_share": lambda text: _share(text, str.isupper),
    "word_length": lambda text: len("".join(text.split())) / max(1, len(text.split())),
    "asks": lambda text: float(text.rstrip().endswith("?")),
    "asks_what": lambda text: float(_first_word(text) in ("what", "what's")),
    "asks_name": lambda text: float(_first_word(text) in PEOPLE_AND_PLACES),
    "asks_reason": lambda text: float(_first_word(text) in EXPLANATIONS),
}
"""Of the characters that are looked at, of what the user wrote last or of the whole text that is to be continued."""
OF_DRAFT: dict[str, Callable[[Sequence[float]], float]] = {
    "least_odds": lambda confidences: log_odds(min(confidences)),
    "mean_odds": lambda confidences: math.fsum(map(log_odds, confidences)) / len(confidences),
    "mean_log": lambda confidences: math.fsum(math.log(max(each, SURE)) for each in confidences) / len(confidences),
}
"""Of the confidences of the edge's first tokens, which are one or more: logarithms of odds, and of confidences."""
CHARACTERS, ENDED, PROMPT_TOKENS = "log_characters", "ended", "log_prompt_tokens"
NAMES = (CHARACTERS, *OF_TEXT, PROMPT_TOKENS, *OF_DRAFT, ENDED)
"""All features that a router may weigh."""


def of_prompt(text: str, tokens: int) -> Features:
    """What is known before the first token. `text`: see OF_TEXT; `tokens`: of the whole prompt, to the edge's model."""
    seen = text if len(text) <= LOOKED_AT else text[: LOOKED_AT // 2] + text[-LOOKED_AT // 2 :]
    sizes = {CHARACTERS: math.log1p(len(text)), PROMPT_TOKENS: math.log1p(tokens)}
    return sizes | {name: of(seen) for name, of in OF_TEXT.items()}


def of_draft(confidences: Sequence[float], finished: bool) -> Features:
    """What the edge's first tokens add; `finished`: with them its answer is complete."""
    return {name: of(confidences) for name, of in OF_DRAFT.items()} | {ENDED: float(finished)}


def log_odds(share: float) -> float:
    """ln(p / (1 - p)), of a share that is cut to SURE and 1 - SURE."""
    cut = min(max(share, SURE), 1 - SURE)
    return math.log(cut / (1 - cut))


def _share(text: str, counts: Callable[[str], bool]) -> float:
    return sum(map(counts, text)) / max(1, len(text))


def _first_word(text: str) -> str:
    word = re.match(r"\W*([\w']+)", text)
    return word[1].lower() if word else ""
