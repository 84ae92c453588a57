"""Drafts without a model: what followed the answer's last tokens where they occurred before, in prompt or answer.

Prompt lookup (Saxena 2023; arXiv 2304.04487) over a suffix match, as in suffix decoding (arXiv 2411.04975).
"""

import asyncio
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from common.lookup.suffix_index import LONGEST, SEPARATOR, Match, SuffixIndex
from common.types import Draft, DraftSource

AT_ONCE = 4096
"""Tokens of a prompt that are read without a pause: about a millisecond."""
MOST_TOKENS = 1 << 16
"""Of a prompt, and of a prediction; of longer ones the last and the first are read."""
RATE = 0.2
"""Of learning within an answer; across answers it is a tenth. Between 0.1 and 0.3 the log loss was least."""
GUIDED = 8
"""The length of match that a prediction's first token counts as."""


@dataclass(slots=True)
class MatchRate:
    """P(the text goes on as after its match) by the length of the match: odds of (length + 0.15) / 3, times a factor.

    The odds were measured on the second halves of source files and of pages of documentation, after the first halves.
    The factor is learned: how much this answer, or this server's answers, repeat.
    """

    log_factor: float = 0.0

    def chance(self, length: int) -> float:
        odds = math.exp(self.log_factor) * (min(length, LONGEST) + 0.15) / 3
        return odds / (1 + odds)

    def learn(self, length: int, right: bool, rate: float) -> None:
        """One step of online logistic regression, bounded so that no text is certain."""
        self.log_factor += rate * (right - self.chance(length))
        self.log_factor = min(max(self.log_factor, -4.0), 4.0)


class Lookup:
    """The look-up drafts of one answer, whose prompt has `prompt_tokens` tokens.

    `prediction`: what the client expects the answer to be; it is one more text to match. `rate` is shared by answers,
    and learns from this one; without it the draft depends on nothing but the text.
    """

    def __init__(
        self,
        prompt_tokens: int,
        prediction: Sequence[int] = (),
        end_tokens: Collection[int] = (),
        rate: MatchRate | None = None,
    ) -> None:
        self.predicted = 0
        """Tokens of the answer that the prediction foresaw."""
        self.prompt_tokens = prompt_tokens
        self._index = SuffixIndex(prediction[:MOST_TOKENS])
        self._end_tokens = end_tokens
        self._shared = rate or MatchRate()
        self._rate = MatchRate(self._shared.log_factor)
        self._read = 0
        """Tokens of prompt and answer that have been read."""
        self._match: Match | None = None

    async def read_prompt(self, committed: Sequence[int]) -> None:
        """Reads the prompt, once, in portions between which other tasks run."""
        while self._read < self.prompt_tokens:
            begin = max(self._read, self.prompt_tokens - MOST_TOKENS)
            self._read = min(begin + AT_ONCE, self.prompt_tokens)
            self._index.extend(committed[begin : self._read])
            if self._read < self.prompt_tokens:
                await asyncio.sleep(0)
            else:
                self._match = Match(0, GUIDED) if self._index.predicted else self._index.find()

    def read(self, committed: Sequence[int]) -> None:
        """Reads what has been committed since, and learns from it, if the prompt has been read."""
        if self._read < self.prompt_tokens:
            return
        for token in committed[self._read :]:
            match = self._match
            expected = self._at(match.position) if match else SEPARATOR
            if match and expected != SEPARATOR:
                right = token == expected
                self._rate.learn(match.length, right, RATE)
                self._shared.learn(match.length, right, RATE / 10)
                self.predicted += right and match.position < self._index.predicted
            self._index.extend([token])
            self._match = self._after(match, expected, token)
        self._read = max(self._read, len(committed))

    def propose(self, new: Sequence[int], limit: int, stop_below: float = 0.0) -> Draft:
        """Up to `limit` tokens after the text and `new`; the chance of each, given those before it, as confidence.

        Like a model's draft it ends with the token that brings the product of confidences below `stop_below`.
        """
        text, match = list(new), self._match
        for place, token in enumerate(new):
            expected = self._at(match.position, new) if match else SEPARATOR
            match = self._after(match, expected, token, new[max(0, place + 1 - LONGEST) : place + 1])
        sources, chances, product = list[DraftSource](), list[float](), 1.0
        while match and len(chances) < limit and product >= stop_below:
            token = self._at(match.position, text)
            if token == SEPARATOR:
                break
            predicted = match.position < self._index.predicted
            sources.append(DraftSource.PREDICTION if predicted else DraftSource.LOOKUP)
            chances.append(self._rate.chance(match.length))
            product *= chances[-1]
            text.append(token)
            match = Match(match.position + 1, match.length + 1)
            if token in self._end_tokens:
                break
        ids = text[len(new) :]
        return Draft(ids, chances, chances, bool(ids) and ids[-1] in self._end_tokens, 0.0, sources=sources)

    def _after(self, match: Match | None, expected: int, token: int, new: Sequence[int] = ()) -> Match | None:
        """The match after one more `token`, the last of the text and `new`: the same one, another, or past an edit."""
        if match and token == expected:
            return Match(match.position + 1, match.length + 1)
        return self._index.find(new) or (Match(match.position + 1, 0) if match and expected != SEPARATOR else None)

    def _at(self, position: int, new: Sequence[int] = ()) -> int:
        """The token at a place of the text and `new` after it; SEPARATOR beyond its end."""
        beyond = position - len(self._index.tokens)
        if beyond < 0:
            return self._index.tokens[position]
        return new[beyond] if beyond < len(new) else SEPARATOR
