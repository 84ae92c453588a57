"""Drafts in the cloud's vocabulary with an edge model of another one, by translating through text.

The cloud's tokens are authoritative. Their text is tokenized for the edge again from the beginning of its last word, so
that the edge's tokens before it, and their KV, stay valid. The edge's draft is tokenized for the cloud up to the last
word that no further text can change.
"""

import math
from collections.abc import Sequence

import msgspec

from common.decoding.draft_yield import EarlyStop
from common.decoding.drafters.retokenize import Drafted, EdgeText, EdgeVocabulary, partial
from common.decoding.interfaces import Drafter
from common.errors import ContextLengthError
from common.protocol.vocabulary import RemoteVocabulary, settled
from common.types import NEVER, NO_DRAFT, Draft, Sampling, StopRule

EXTRA = 2
"""Edge tokens drafted beyond the limit, because the last word of a draft is held back."""
TRIES = 3
"""Attempts per call to draft text that can be translated."""
CONTEXT = 8
"""Cloud tokens before a draft that may affect its tokenization."""
STATES = 8
"""States kept of one answer, to which it may be rolled back."""


class PaddedDrafter:
    """Limits a drafter to the ids below `size`, which it shares with the cloud: no other ids in drafts or context."""

    def __init__(self, drafter: Drafter, size: int) -> None:
        self._drafter = drafter
        self._size = size

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        if max(token_ids, default=0) >= self._size:
            return NO_DRAFT
        draft = await self._drafter.draft(token_ids, limit, sampling, stop=stop)
        foreign = next((at for at, token in enumerate(draft.token_ids) if token >= self._size), None)
        return draft if foreign is None else draft.part(0, foreign)


class TranslatingDrafter:
    """Drafts cloud tokens after the cloud's prompt, of `prompt_tokens`, and answer; the edge's prompt is `edge_prompt`.

    A cloud token gets the product of the confidences (and probabilities) of the edge tokens that begin in it, 1 if
    none does, so that the product over a draft is the edge's own. The end of the answer becomes the cloud's usual end
    token. A draft ends before any other special token of the edge, and before bytes that are not UTF-8. Special tokens
    of the cloud stay in the answer, and the edge does not see them. The context may be a guess that is rolled back
    later. `stop` ends the edge's own draft, whose last word is held back: that is the one of the unlikely token.
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
        """Answers followed so far, in the cloud's tokens; each is a prefix of the next, the first is empty."""
        self._sampling: Sampling | None = None

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        self._follow(token_ids, sampling)
        context, latency = self._context(token_ids), 0.0
        draft = self._translated(context, limit)
        early = EarlyStop(stop)
        stopped = early.ends_within(draft.confidences)
        for _ in range(TRIES):
            if len(draft.token_ids) >= limit or self._text.ended or stopped:
                break
            latency += await self._draw(limit - len(draft.token_ids) + EXTRA, sampling, early.rest)
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
            self._text.forget_draft()  # it was drawn with other sampling
        self._sampling = sampling

    async def _draw(self, count: int, sampling: Sampling, stop: StopRule) -> float:
        """Lets the edge draft up to `count` more tokens. Returns its milliseconds."""
        own = msgspec.structs.replace(sampling, prompt_tokens=self._edge_prompt_tokens)
        try:
            draft = await self._drafter.draft(self._text.ids, count, own, stop=stop)
        except ContextLengthError:
            draft = NO_DRAFT  # the answer is too long in the edge's tokens: the cloud continues without drafts
        stopped = EarlyStop(stop).ends_within(draft.confidences)
        self._text.append(draft, last=len(draft.token_ids) < count and not stopped)
        return draft.latency_ms

    def _context(self, token_ids: Sequence[int]) -> list[int]:
        """The last tokens of the answer, from the beginning of a word on; at most CONTEXT of them, else none."""
        answer = len(token_ids) - self._prompt
        for back in range(1, min(CONTEXT, answer) + 1):
            if back == answer or self._cloud.piece(token_ids[-back])[:1].isspace():
                return list(token_ids[-back:])
        return []

    def _translated(self, context: list[int], limit: int) -> Draft:
        """The edge's draft in the cloud's tokens, up to `limit`, as far as further text cannot change it."""
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
        """The cloud tokens of the drafted text that further text cannot change, and whether they are all of it."""
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
        """Byte tokens for the beginning of `data` that completes a partly committed character."""
        rest = data[: next((at for at, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), min(3, len(data)))]
        tokens = [self._cloud.byte_tokens.get(bytes([byte])) for byte in rest]
        return [token for token in tokens if token is not None] if None not in tokens else []

    def _cut(self, text: str, context: list[int]) -> list[tuple[int, int | None]] | None:
        """The tokens of `text` after `context`; None if the cloud's vocabulary cannot spell it."""
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
        """Confidence and probability of each cloud token: products over the edge tokens that begin in it."""
        confidences, probs, begin = [], [], 0
        for token_id in ids:
            end = begin + len(self._cloud.piece(token_id))
            within = [token for token in drafted if begin <= token.begin < end]
            confidences.append(math.prod(token.confidence for token in within))
            probs.append(math.prod(token.prob for token in within))
            begin = end
        return confidences, probs


def valid(data: bytes) -> bytes:
    """`data` up to the first byte that is not part of a complete UTF-8 character."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start]
    return data
