"""A drafter in the cloud's tokens over one in other tokens: the two meet at text. Knows no engine and no HTTP.

The cloud's tokens are the truth. Their text is read again in the edge's tokens, from the beginning of the last word on,
so that what lies before it, and its KV, stays; the edge's draft goes the other way, up to the last word that no
further text can change.
"""

import math
from collections.abc import Sequence

import msgspec

from common.decoding.interfaces import Drafter
from common.decoding.retokenize import Drafted, EdgeText, EdgeVocabulary, partial
from common.errors import ContextLengthError
from common.protocol.vocabulary import RemoteVocabulary, settled
from common.types import NO_DRAFT, Draft, Sampling

AHEAD = 2
"""Edge tokens drafted beyond what is asked for: the last word of a draft is held back."""
TRIES = 3
"""Drafts made in one round until there is something that can be told."""
CONTEXT = 8
"""Cloud tokens before a draft that may decide how it is cut into tokens."""
STATES = 8
"""Texts remembered of one answer, to which it may be rolled back."""


class PaddedDrafter:
    """A drafter that shares only the ids below `size` with the cloud: drafts no others, and follows no others."""

    def __init__(self, drafter: Drafter, size: int) -> None:
        self._drafter = drafter
        self._size = size

    async def draft(
        self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop_below: float = 0.0
    ) -> Draft:
        if max(token_ids, default=0) >= self._size:
            return NO_DRAFT
        draft = await self._drafter.draft(token_ids, limit, sampling, stop_below=stop_below)
        foreign = next((at for at, token in enumerate(draft.token_ids) if token >= self._size), None)
        return draft if foreign is None else draft.part(0, foreign)


class TranslatingDrafter:
    """Drafts after the cloud's tokens `prompt` + answer, with an edge that reads the same prompt as `edge_prompt`.

    A cloud token has the product of the confidences (and probabilities) of those edge tokens that begin in it, 1 if
    none does, so that a draft's product is the edge's own. An end of the answer is the cloud's usual end token. A
    draft ends before another special token of the edge, and before bytes that are no text; special tokens of the
    cloud stay in its answer, unseen by the edge. What it is asked to follow may be a guess, and be rolled back later.
    `stop_below` is not heeded: what is drafted last is held back, and the rest costs little.
    """

    def __init__(
        self,
        drafter: Drafter,
        edge: EdgeVocabulary,
        cloud: RemoteVocabulary,
        edge_prompt: Sequence[int],
        prompt_tokens: int,
    ) -> None:
        self._drafter = drafter
        self._cloud = cloud
        self._prompt = prompt_tokens
        self._edge_prompt_tokens = len(edge_prompt)
        self._text = EdgeText(edge, edge_prompt)
        self._states: list[tuple[list[int], EdgeText]] = [([], self._text)]
        """Answers followed so far, in the cloud's tokens, each the beginning of the next, from the empty one on."""
        self._sampling: Sampling | None = None

    async def draft(
        self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop_below: float = 0.0
    ) -> Draft:
        self._follow(token_ids, sampling)
        context, latency = self._context(token_ids), 0.0
        draft = self._translated(context, limit)
        for _ in range(TRIES):
            if len(draft.token_ids) >= limit or self._text.ended:
                break
            latency += await self._draw(limit - len(draft.token_ids) + AHEAD, sampling)
            draft = self._translated(context, limit)
            if draft.token_ids:
                break
        return msgspec.structs.replace(draft, latency_ms=latency)

    def _follow(self, token_ids: Sequence[int], sampling: Sampling) -> None:
        answer = list(token_ids[self._prompt :])
        while self._states[-1][0] != answer[: len(self._states[-1][0])]:
            self._states.pop()
        known, text = self._states[-1]
        if len(known) < len(answer):
            self._text = text.copy()
            self._text.follow(b"".join(map(self._cloud.piece, answer[len(known) :])))
            self._states.append((answer, self._text))
            del self._states[1:-STATES]
        else:
            self._text = text
        if self._sampling not in (None, sampling):
            self._text.forget_draft()  # it was drawn otherwise
        self._sampling = sampling

    async def _draw(self, count: int, sampling: Sampling) -> float:
        """Has the edge draft further; milliseconds."""
        own = msgspec.structs.replace(sampling, prompt_tokens=self._edge_prompt_tokens)
        try:
            draft = await self._drafter.draft(self._text.ids, count, own)
        except ContextLengthError:
            draft = NO_DRAFT  # in the edge's tokens the answer is too long: the cloud goes on without it
        self._text.append(draft, last=len(draft.token_ids) < count)
        return draft.latency_ms

    def _context(self, token_ids: Sequence[int]) -> list[int]:
        """The last tokens of the answer from the beginning of a word on, if there are few."""
        answer = len(token_ids) - self._prompt
        for back in range(1, min(CONTEXT, answer) + 1):
            if back == answer or self._cloud.piece(token_ids[-back])[:1].isspace():
                return list(token_ids[-back:])
        return []

    def _translated(self, context: list[int], limit: int) -> Draft:
        """The edge's draft in the cloud's tokens, as far as it is settled."""
        text = self._text
        ids, whole = self._encoded(context)
        confidences, probs = self._scores(ids, text.drafted)
        if whole and text.end is not None and len(ids) < limit and self._cloud.end_tokens:
            ids.append(self._cloud.end_tokens[0])
            confidences.append(text.end.confidence)
            probs.append(text.end.prob)
            return Draft(ids, probs, confidences, True, 0.0)
        return Draft(ids[:limit], probs[:limit], confidences[:limit], False, 0.0)

    def _encoded(self, context: list[int]) -> tuple[list[int], bool]:
        """The settled cloud tokens of what is drafted, and whether they are all of it."""
        data, ended = self._text.ahead, self._text.ended
        begun = self._rest_of_character(data)
        part = valid(data[len(begun) :])
        ended |= len(part) + len(begun) + partial(data) < len(data)
        tokens = self._cut(part.decode(), [] if begun else context)
        if tokens is None:
            return [], False
        if not ended:
            tokens = tokens[: settled([word for _, word in tokens])]
        ids = begun + [token for token, _ in tokens]
        return ids, ended and len(b"".join(map(self._cloud.piece, ids))) == len(data)

    def _rest_of_character(self, data: bytes) -> list[int]:
        """Tokens for what `data` adds to a character that is committed in part: byte by byte."""
        rest = data[: next((at for at, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), min(3, len(data)))]
        tokens = [self._cloud.byte_tokens.get(bytes([byte])) for byte in rest]
        return [token for token in tokens if token is not None] if None not in tokens else []

    def _cut(self, text: str, context: list[int]) -> list[tuple[int, int | None]] | None:
        """The tokens of `text` after `context`; None where the cloud's tokens cannot spell it."""
        before = b"".join(map(self._cloud.piece, context))
        if before and not partial(before) and valid(before) == before:
            tokens = self._cloud.tokens(before.decode() + text)
            if [token for token, _ in tokens[: len(context)]] == context:
                return self._checked(tokens[len(context) :], text)
        return self._checked(self._cloud.tokens(text), text)

    def _checked(self, tokens: list[tuple[int, int | None]], text: str) -> list[tuple[int, int | None]] | None:
        spelled = b"".join(self._cloud.piece(token) for token, _ in tokens)
        return tokens if spelled == text.encode() else None

    def _scores(self, ids: list[int], drafted: Sequence[Drafted]) -> tuple[list[float], list[float]]:
        """Confidence and probability of each cloud token: the products of those of the edge tokens that begin in it."""
        confidences, probs, begin = [], [], 0
        for token in ids:
            end = begin + len(self._cloud.piece(token))
            within = [one for one in drafted if begin <= one.begin < end]
            confidences.append(math.prod(one.confidence for one in within))
            probs.append(math.prod(one.prob for one in within))
            begin = end
        return confidences, probs


def valid(data: bytes) -> bytes:
    """`data` up to the first byte that is not, or not yet, part of a character."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start]
    return data
