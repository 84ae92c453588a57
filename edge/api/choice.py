"""One choice of a response: turns an answer's tokens into text, with log probabilities and sources if asked for."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import repeat

from common.cloud_client.pool import clouds_called
from common.decoding.answer import Chunk
from common.decoding.progress import current_progress
from common.protocol.openai_responses import SourcedToken
from common.types import Collaboration, DraftSource, FinishReason, Provenance
from edge.api.answers import RunningAnswer, start
from edge.api.context import ServerContext
from edge.api.echo import echoed_prompt
from edge.api.rendering.chat_message import new_call_id
from edge.api.rendering.joint_report import combined
from edge.api.rendering.logprobs import ScoredToken
from edge.api.resolve import ResolvedAnswer, ResolvedRequest
from edge.privacy.restoring import RestoredParts, restored
from edge.text.detokenizer import TextStream
from edge.tool_calls.parts import Part, Said, ToolCall


@dataclass(frozen=True)
class TextPiece:
    """A part of one choice as soon as it may be shown; the last piece has the finish reason.

    `tokens` holds the scored tokens if log probabilities were asked for; part of a piece's text may belong to tokens of
    earlier pieces. `sources` holds the tokens' provenance if that was asked for.
    """

    choice: int
    parts: Sequence[Part]
    tokens: list[ScoredToken] = field(default_factory=list)
    provenance: Provenance | None = None
    finish_reason: str | None = None
    sources: Sequence[SourcedToken] = ()
    stopped_by: str | None = None
    """The stop string that ended the answer."""
    calls_before: int = 0
    """Tool calls in earlier pieces."""


class Choice:
    """One answer to one prompt; `pieces` runs it once, to its end or to a stop string."""

    def __init__(self, index: int, request: ResolvedRequest, context: ServerContext) -> None:
        self.index = index
        self.tokens = 0
        """Tokens of the answer so far, its end token included."""
        self.thought_tokens = 0
        """Those of them that are thoughts."""
        self._request = request
        self._context = context
        self._resolved = request.answers[index]
        self._text = TextStream(self._spell, request.stop)
        self._reader = self._resolved.reading.reader()
        self._restored = RestoredParts(request.secrets, request.json_text)
        self._calls = 0
        """Tool calls so far."""
        self._begins = 0
        """Where the answer begins in the choice's text, in characters: after the prompt, if that is echoed."""
        self._unshown: list[ScoredToken] = []
        self._stopped = False
        """Whether a stop string, a stop token or a call that is to be the only one has ended the answer."""
        self._running: RunningAnswer | None = None
        self._earlier: list[Collaboration] = []
        """The reports of the parts of the answer that ended with its thoughts."""
        self._recorded: Collaboration | None = None
        """The report that was counted, with the answer's cost."""
        self._before = 0
        """Tokens of the answer before the part that is running."""

    @property
    def begun(self) -> bool:
        return self._running is not None

    @property
    def prompt_tokens(self) -> int:
        """As the model that answers has them, once it has told."""
        if self._running is None or self._earlier:
            return len(self._resolved.decoding.prompt)
        return self._running.answer.prompt_tokens

    @property
    def report(self) -> Collaboration:
        """The answer's report, complete when `pieces` has ended."""
        assert self._running is not None, "the answer has started"
        if self._recorded is not None:
            return self._recorded
        last = self._running.answer.report  # an earlier one, if what follows a thought could not start
        return combined([*(one for one in self._earlier if one is not last), last])

    async def pieces(self) -> AsyncGenerator[TextPiece, None]:
        following: ResolvedAnswer | None = self._resolved
        try:
            while following is not None:
                async with aclosing(self._run(following)) as pieces:
                    async for piece in pieces:
                        yield piece
                parts, following = self._after_thought()
                if parts:
                    yield self._piece(parts)
        finally:
            self._record_end()
        assert self._running is not None, "it has run"
        yield self._piece(self._rest(), finish_reason=self._finish_reason(self._running.answer.finish_reason))

    async def _run(self, resolved: ResolvedAnswer) -> AsyncGenerator[TextPiece, None]:
        """The answer up to its end, or to where a thought is to end."""
        async with start(resolved, self._request, self._context) as (running, sequence):
            self._running = running
            running.answer.set_thinking(self._reader.thinking)
            if self._request.echo:
                echoed = await echoed_prompt(self._resolved, self._request, self._context, running.answer, sequence)
                self._begins = echoed.characters
                yield TextPiece(self.index, [Said(echoed.text)], echoed.tokens)
            async with aclosing(running.run()) as chunks:
                async for chunk in chunks:
                    if piece := self._read(chunk):
                        yield piece
                    if self._stopped or self._over_budget:
                        break

    def _record_end(self) -> None:
        if self._running is None:
            return
        report = self._recorded = self.report
        if progress := current_progress.get():
            report.waited_for, seconds = progress.longest
            report.longest_wait_ms = seconds * 1e3
        called = clouds_called.get()
        self._context.record_answer(report, self.prompt_tokens, called[-1] if called else None)

    @property
    def _over_budget(self) -> bool:
        budget = self._request.thought_budget
        return budget is not None and self._reader.thinking and self.thought_tokens >= budget

    def _after_thought(self) -> tuple[list[Part], ResolvedAnswer | None]:
        """What remains of a thought that has used up its budget, and the answer that goes on after its end.

        None: nothing is to go on.
        """
        running, resolved = self._running, self._resolved
        if running is None or self._stopped or not self._over_budget:
            return [], None
        end = resolved.prompt.encode_marks(resolved.reading.end_of_thought)
        room = resolved.decoding.max_tokens - self.tokens - len(end)
        if end and room <= 0:
            running.answer.ended = FinishReason.LENGTH  # by which the thought would have ended anyway
        if not end or room <= 0:
            return [], None
        self._earlier.append(running.answer.report)
        parts = self._take(self._reader.feed(self._text.push(end)))
        self.tokens = self._before = self.tokens + len(end)
        plan = replace(resolved.decoding.plan, routing=running.answer.plan.routing)
        decoding = replace(resolved.decoding, prompt=[*running.answer.committed, *end], max_tokens=room, plan=plan)
        return parts, replace(resolved, decoding=decoding)

    @property
    def _has_only_call(self) -> bool:
        """Whether the answer has the call that is to be its only one."""
        return self._calls > 0 and not self._request.parallel_calls

    def _finish_reason(self, reason: FinishReason) -> str:
        return "tool_calls" if self._calls and reason is FinishReason.STOP else reason

    def _spell(self, token: int) -> bytes:
        """Of special tokens only those that the answer's reader looks for have a text."""
        prompt, reading = self._resolved.prompt, self._resolved.reading
        data = prompt.piece(token)
        if data or not reading.marks:
            return data
        special = prompt.piece(token, special=True)
        return special if reading.shows(special.decode(errors="replace")) else b""

    def _read(self, chunk: Chunk) -> TextPiece | None:
        """What the chunk adds that may be shown; the answer ends with the token that completes a stop string."""
        assert self._running is not None, "its chunks are read"
        answer = self._running.answer
        before, parts = self.tokens, list[Part]()
        for position, token in enumerate(chunk.token_ids):
            within = self._reader.thinking
            if chunk.logprobs is not None:
                score = chunk.logprobs[position]
                self._unshown.append(ScoredToken(token, self._begins + self._text.decoded, score))
            parts += self._take(self._reader.feed(self._text.push([token])))
            self.tokens += 1
            self.thought_tokens += within and self._reader.thinking
            self._stopped = self._text.stopped or token in self._request.stop_token_ids or self._has_only_call
            if self._stopped or self._over_budget:
                answer.stop_after(self.tokens - self._before)
                break
        answer.set_thinking(self._reader.thinking)
        sources = self._sources(chunk)[: self.tokens - before] if self._request.token_sources else []
        return self._piece(parts, chunk.provenance, sources=sources) if parts or sources else None

    def _take(self, parts: list[Part]) -> list[Part]:
        """The parts, the calls with an id; what follows the only call is left out."""
        taken = list[Part]()
        for part in parts:
            if self._has_only_call:
                break
            if isinstance(part, ToolCall):
                part = part._replace(id=new_call_id())
                self._calls += 1
            taken.append(part)
        return self._restored.take(taken)

    def _rest(self) -> list[Part]:
        """What was held back until the end of the answer."""
        return [*self._take([*self._reader.feed(self._text.flush()), *self._reader.end()]), *self._restored.end()]

    def _sources(self, chunk: Chunk) -> list[SourcedToken]:
        confidences: list[float | None] = [*chunk.confidences] or [None] * len(chunk.token_ids)
        drafters: list[DraftSource | None] = [*chunk.drafters] or [None] * len(chunk.token_ids)
        texts = (self._resolved.prompt.piece(token).decode("utf-8", "replace") for token in chunk.token_ids)
        of_chunk = repeat(chunk.round), repeat(chunk.exit)
        rows = zip(chunk.token_ids, texts, repeat(chunk.provenance), confidences, drafters, *of_chunk)
        return [SourcedToken(*row) for row in rows]

    def _piece(
        self,
        parts: Sequence[Part],
        provenance: Provenance | None = None,
        finish_reason: str | None = None,
        sources: Sequence[SourcedToken] = (),
    ) -> TextPiece:
        tokens, self._unshown = self._unshown, []
        if finish_reason is None and tokens and not self._spell(tokens[-1].token_id):
            # The end token goes with the last piece: clients read the text of a piece as that of its tokens.
            tokens, self._unshown = tokens[:-1], tokens[-1:]
        if self._text.stopped:
            tokens = [token for token in tokens if token.offset < self._begins + self._text.shown]
        before = self._calls - sum(isinstance(part, ToolCall) for part in parts)
        stop = restored(self._text.stopped_by or "", self._request.secrets) or None if finish_reason else None
        return TextPiece(self.index, parts, tokens, provenance, finish_reason, sources, stop, before)
