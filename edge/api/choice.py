"""One choice of a response: turns an answer's tokens into text, with log probabilities and sources if asked for."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import repeat

from common.decoding.answer import Chunk
from common.protocol.openai_responses import SourcedToken
from common.types import Collaboration, Provenance
from edge.api.answers import RunningAnswer, start
from edge.api.context import ServerContext
from edge.api.logprobs import ScoredToken
from edge.api.resolve import ResolvedRequest
from edge.engine.engine import EdgeSequence
from edge.text.detokenizer import TextStream


@dataclass(frozen=True)
class TextPiece:
    """Text of one choice as soon as it may be shown; the last piece has the finish reason.

    `tokens` holds the scored tokens if log probabilities were asked for; part of a piece's text may belong to tokens of
    earlier pieces. `sources` holds the tokens' provenance if that was asked for.
    """

    choice: int
    text: str
    tokens: list[ScoredToken] = field(default_factory=list)
    provenance: Provenance | None = None
    finish_reason: str | None = None
    sources: Sequence[SourcedToken] = ()


class Choice:
    """One answer to one prompt; `pieces` runs it once, to its end or to a stop string."""

    def __init__(self, index: int, request: ResolvedRequest, context: ServerContext) -> None:
        self.index = index
        self.tokens = 0
        """Tokens of the answer so far, its end token included."""
        self._request = request
        self._context = context
        self._resolved = request.answers[index]
        self._text = TextStream(self._resolved.prompt.piece, request.stop)
        self._begins = 0
        """Where the answer begins in the choice's text, in characters: after the prompt, if that is echoed."""
        self._unshown: list[ScoredToken] = []
        self._running: RunningAnswer | None = None

    @property
    def report(self) -> Collaboration:
        """The answer's report, complete when `pieces` has ended."""
        assert self._running is not None, "the answer has started"
        return self._running.answer.report

    async def pieces(self) -> AsyncGenerator[TextPiece, None]:
        async with start(self._resolved, self._request, self._context) as (running, sequence):
            self._running = running
            echoed = await self._echo(sequence) if self._request.echo and sequence else None
            try:
                if echoed is not None:
                    yield echoed
                async with aclosing(running.run()) as chunks:
                    async for chunk in chunks:
                        if piece := self._read(chunk):
                            yield piece
                        if self._text.stopped:
                            break
            finally:
                self._context.record_answer(self.report)
        yield self._piece(self._text.flush(), finish_reason=running.answer.finish_reason)

    async def _echo(self, sequence: EdgeSequence) -> TextPiece:
        """The prompt as text, with the log probability of each of its tokens if asked for."""
        text, top, prompt = TextStream(self._spell_prompt), self._request.top_logprobs, self._resolved.decoding.prompt
        begins, parts = [], []
        for token in prompt:
            begins.append(text.decoded)
            parts.append(text.push([token]))
        parts.append(text.flush())
        self._begins = text.shown
        if top is None:
            return TextPiece(self.index, "".join(parts))
        scores = await sequence.score(prompt, max(1, top))
        tokens = [ScoredToken(*token) for token in zip(prompt, begins, scores, strict=True)]
        return TextPiece(self.index, "".join(parts), tokens)

    def _spell_prompt(self, token: int) -> bytes:
        """Special tokens as the client wrote them; the tokenizer added the one that begins the text."""
        data = self._request.engine.piece(token, special=True)
        return b"" if data == self._request.engine.bos.encode() else data

    def _read(self, chunk: Chunk) -> TextPiece | None:
        """What the chunk adds that may be shown; the answer ends with the token that completes a stop string."""
        before, shown = self.tokens, []
        for position, token in enumerate(chunk.token_ids):
            if chunk.logprobs is not None:
                score = chunk.logprobs[position]
                self._unshown.append(ScoredToken(token, self._begins + self._text.decoded, score))
            shown.append(self._text.push([token]))
            self.tokens += 1
            if self._text.stopped:
                assert self._running is not None, "its chunks are read"
                self._running.answer.stop_after(self.tokens)
                break
        text = "".join(shown)
        sources = self._sources(chunk)[: self.tokens - before] if self._request.token_sources else []
        return self._piece(text, chunk.provenance, sources=sources) if text or sources else None

    def _sources(self, chunk: Chunk) -> list[SourcedToken]:
        confidences: list[float | None] = [*chunk.confidences] or [None] * len(chunk.token_ids)
        texts = (self._resolved.prompt.piece(token).decode("utf-8", "replace") for token in chunk.token_ids)
        return [SourcedToken(*row) for row in zip(chunk.token_ids, texts, repeat(chunk.provenance), confidences)]

    def _piece(
        self,
        text: str,
        provenance: Provenance | None = None,
        finish_reason: str | None = None,
        sources: Sequence[SourcedToken] = (),
    ) -> TextPiece:
        tokens, self._unshown = self._unshown, []
        if self._text.stopped:
            tokens = [token for token in tokens if token.offset < self._begins + self._text.shown]
        return TextPiece(self.index, text, tokens, provenance, finish_reason, sources)
