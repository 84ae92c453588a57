"""Keeps an answer in the edge's tokens: the committed text, and what the edge has drafted after it."""

import codecs
from bisect import bisect_left
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, Self

from common.protocol.vocabulary import adds_space, inside
from common.types import Draft

BACK = 16
"""Most edge tokens that are tokenized again, even if no word begins among them."""


class EdgeVocabulary(Protocol):
    """The part of the edge's vocabulary that is used here."""

    @property
    def end_tokens(self) -> Collection[int]: ...
    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]: ...
    def piece(self, token_id: int, special: bool = False) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Drafted:
    """One drafted edge token; `begin`: its first byte, counted after the committed text, 0 if it begins before."""

    begin: int
    prob: float
    confidence: float


class EdgeText:
    """`ids`, the edge's tokens, spell its prompt, then `committed` (without an incomplete last character) and `ahead`.

    Committing what is drafted changes no token. Committing anything else drops the draft, and tokenizes the text again
    from the beginning of the word that was last before.
    """

    def __init__(self, vocabulary: EdgeVocabulary, prompt: Sequence[int]) -> None:
        self.ids = list(prompt)
        self.committed = bytearray()
        self.ahead = b""
        """The bytes drafted after `committed`."""
        self.end: Drafted | None = None
        """The end token after `ahead`, if one is drafted."""
        self.ended = False
        """Nothing can follow `ahead`."""
        self._vocabulary = vocabulary
        self._prompt = len(self.ids)
        self._ends: list[int] = []
        """The end of each token of the answer, in bytes; non-decreasing."""
        self._draft: list[Drafted] = []
        """The drafted tokens, the last of the answer; here `begin` counts from the beginning of the answer."""
        self._adds_space = adds_space(self._encode, vocabulary.piece)

    def copy(self) -> Self:
        """An independent copy."""
        other = copy(self)
        other.ids, other.committed = list(self.ids), bytearray(self.committed)
        other._ends, other._draft = list(self._ends), list(self._draft)
        return other

    @property
    def drafted(self) -> list[Drafted]:
        """The drafted tokens that spell `ahead`."""
        done = len(self.committed)
        first = len(self._ends) - len(self._draft)
        pairs = zip(self._draft, self._ends[first:], strict=True)
        return [Drafted(max(0, token.begin - done), token.prob, token.confidence) for token, end in pairs if end > done]

    def follow(self, data: bytes) -> None:
        """Commits `data`."""
        if self.ahead.startswith(data):
            self.committed += data
            self.ahead = self.ahead[len(data) :]
            return
        kept = self._last_word()
        self.committed += data
        self._read_from(kept)

    def forget_draft(self) -> None:
        """Drops what is drafted."""
        self._read_from(self._last_word())

    def append(self, draft: Draft, last: bool) -> None:
        """Adds what the edge drew after `ids`; `last`: it can draw no more."""
        self.ended |= last
        before, at = len(self._ends), self._covered
        data = b""
        for token, prob, confidence in zip(draft.token_ids, draft.probs, draft.confidences, strict=True):
            piece = self._vocabulary.piece(token)
            drafted = Drafted(at + len(data), prob, confidence)
            if token in self._vocabulary.end_tokens:
                self.end = drafted
            if not piece or self.end:
                self.ended = True
                break
            data += piece
            self.ids.append(token)
            self._ends.append(at + len(data))
            self._draft.append(drafted)
        held = bytes(self.committed[at:])
        if data.startswith(held):
            self.ahead += data[len(held) :]
        else:  # the edge completes the partly committed character differently
            self._keep(before)
            self.end, self.ended = None, True

    @property
    def _covered(self) -> int:
        """How many bytes of the answer the tokens spell."""
        return self._ends[-1] if self._ends else 0

    def _encode(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False)

    def _read_from(self, kept: int) -> None:
        """Tokenizes the committed text again after the first `kept` tokens of the answer."""
        self._keep(kept)
        self._draft, self.ahead, self.end, self.ended = [], b"", None, False
        begin = self._covered
        data = bytes(self.committed[begin:])
        whole = data[: len(data) - partial(data)]
        ids = inside(self._encode, whole.decode(errors="replace"), self._adds_space)
        pieces = [self._vocabulary.piece(token) for token in ids]
        ends = list(accumulate(map(len, pieces), initial=begin))[1:]
        self.ids += ids
        # Text that the edge cannot spell exactly gets its nearest tokens, which all end where the text does.
        self._ends += ends if b"".join(pieces) == whole else [begin + len(whole)] * len(ids)

    def _keep(self, kept: int) -> None:
        first = len(self._ends) - len(self._draft)
        del self._draft[max(0, kept - first) :], self._ends[kept:], self.ids[self._prompt + kept :]

    def _last_word(self) -> int:
        """How many tokens lie before the last committed word; the BACK last ones at most are not kept."""
        last = bisect_left(self._ends, len(self.committed))
        first = max(0, last - BACK)
        kept = range(last, first, -1)
        word = next((n for n in kept if self._word_begins(self._ends[n - 1])), None)
        if word is not None or not first:
            return word or 0
        return next((n for n in range(first, 0, -1) if self.committed[self._ends[n - 1]] & 0xC0 != 0x80), 0)

    def _word_begins(self, at: int) -> bool:
        return self.committed[at : at + 1].isspace() and not self.committed[at - 1 : at].isspace()


def partial(data: bytes) -> int:
    """How many bytes at the end of `data` belong to an incomplete UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(decoder.getstate()[0])
