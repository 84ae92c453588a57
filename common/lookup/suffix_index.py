"""Finds the longest earlier occurrence of a growing text's last tokens, with hash chains over pairs of tokens."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

LONGEST = 16
"""Tokens of a match that are compared; longer ones count as equally long."""
SHORTEST = 2
CANDIDATES = 16
"""Earlier occurrences of the last pair that are compared, the newest first."""
SEPARATOR = -1
"""Between prediction and prompt: no match crosses it, and nothing proposes it."""


class Match(NamedTuple):
    """The text goes on as at `position`; the `length` tokens before that are the text's last ones."""

    position: int
    length: int


class SuffixIndex:
    """A text to which tokens are appended, O(1) each, and a `prediction` of what will follow at some time.

    As in LZ77 with hash chains (RFC 1951, section 4): a table of the newest place of each pair of tokens, and for each
    place the one before it. Takes about 150 bytes a token.
    """

    def __init__(self, prediction: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self.predicted = len(prediction)
        """Places below this belong to the prediction."""
        self._newest: dict[tuple[int, int], int] = {}
        self._earlier = array("i")
        """For each place the one before it after the same pair; 0: none."""
        if prediction:
            self.extend([*prediction, SEPARATOR])

    def extend(self, token_ids: Sequence[int]) -> None:
        """Appends tokens to the text."""
        newest, earlier, place = self._newest, self._earlier, len(self.tokens)
        if not place and token_ids:
            earlier.append(0)  # before the first token there is no pair
            place, token_ids, self.tokens = 1, token_ids[1:], [token_ids[0]]
        last = self.tokens[-1] if self.tokens else 0
        for token in token_ids:
            # The pair's end is where a match would go on: one place further.
            pair, last, place = (last, token), token, place + 1
            earlier.append(newest.get(pair, 0))
            newest[pair] = place
        self.tokens += token_ids

    def find(self, new: Sequence[int] = ()) -> Match | None:
        """The longest match of the end of the text and `new` after it; of equally long ones one in the prediction.

        Otherwise the newest. None if not even the last pair occurs earlier.
        """
        recent = [*self.tokens[-LONGEST:], *new[-LONGEST:]][-LONGEST:]
        if len(recent) < SHORTEST:
            return None
        best, rank = None, (0, False)
        place = self._newest.get((recent[-2], recent[-1]), 0)
        for _ in range(CANDIDATES):
            if place == len(self.tokens) and not new:  # the end of the text itself
                place = self._earlier[place - 1]
            if not place:
                break
            length = self._common_suffix(place, recent)
            if (length, place < self.predicted) > rank:
                best, rank = Match(place, length), (length, place < self.predicted)
            place = self._earlier[place - 1]
        return best

    def _common_suffix(self, place: int, recent: list[int]) -> int:
        before = self.tokens[max(0, place - len(recent)) : place]
        length = SHORTEST
        while length < len(before) and before[-length - 1] == recent[-length - 1]:
            length += 1
        return length
