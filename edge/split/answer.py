"""One answer of a split model: segment, exit, next segment, exit, cloud. Knows no HTTP and no llama.cpp."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, nullcontext

from common.decoding.answer import Answer, Chunk
from common.decoding.estimates import Mean
from common.decoding.policy import Plan
from common.errors import EndpointError, RequestError
from common.types import Provenance, Sampling
from edge.split.cloud_tail import CloudTail
from edge.split.early_exit import AnswerPace, LatencyAwareEarlyExit
from edge.split.segments import ExitPrediction, SegmentSequence


class SplitAnswer:
    """Answers one prompt; `run` yields chunks as they are committed, `answer` tells the rest.

    A position that an exit was sure of is owed to what lies behind that exit, and caught up with the others when one is
    not sure. When the cloud cannot be used the last exit answers, and `report.degraded` says why. Without a `tail` the
    edge answers alone. `deeper` remembers, for all answers, what each exit's being unsure has cost.
    """

    def __init__(
        self,
        sequence: SegmentSequence,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        plan: Plan,
        exits: LatencyAwareEarlyExit,
        tail: CloudTail | None,
        deeper: Sequence[Mean],
    ) -> None:
        self.answer = Answer(plan, list(prompt), max_tokens)
        self._sequence = sequence
        self._prompt = len(prompt)
        self._sampling = sampling
        self._exits = exits
        self._last = len(exits.thresholds) - 1
        self._tail = tail
        self._deeper = deeper
        self._began: float | None = None
        """When the first exit was first heard, as `time.perf_counter` counts."""
        self.answer.report.exits = {str(layer): 0 for layer in sequence.exits}

    async def run(self) -> AsyncGenerator[Chunk, None]:
        answer, sequence = self.answer, self._sequence
        async with self._tail or nullcontext():
            try:
                while answer.open:
                    guess: ExitPrediction | None = None
                    new = answer.committed[sequence.held[0] :]
                    async with aclosing(sequence.draw(new, self._most_at_first, self._sure_at(0))) as parts:
                        async for part in parts:
                            guess = part[-1]
                            if taken := part if guess.sure else part[:-1]:
                                yield self._commit(taken, 0)
                    if guess is None or not guess.sure:
                        yield await self._deep_token(guess)
            finally:
                self._close_report()

    async def _deep_token(self, guess: ExitPrediction | None) -> Chunk:
        """The next token, of which the first exit, if it was heard at all, is not sure."""
        unsure = {0: time.perf_counter()}
        if self._tail:
            self._tail.upload(self._sequence.states)  # while the next segment computes
        for at in range(1, self._last + 1):
            if self._exits.never(at) and (self._tail or at < self._last):
                continue
            guess = await self._sequence.catch_up(at, self._sure_at(at))
            if guess.sure:
                chunk = self._commit([guess], at)
                break
            unsure[at] = time.perf_counter()
        else:
            chunk = await self._cloud_token(guess)
        for at, since in unsure.items():
            self._deeper[at].add((time.perf_counter() - since) * 1e3)
        return chunk

    async def _cloud_token(self, guess: ExitPrediction | None) -> Chunk:
        """The cloud's token; if none can be had, that of the last exit."""
        assert self._tail is not None, "alone, the last exit is always sure"
        try:
            token = await self._tail.token(self._sequence.states, self._sampling)
        except (EndpointError, RequestError) as error:
            if not self.answer.plan.fallback:
                raise
            self.answer.report.degraded = self.answer.report.degraded or error.message
            self.answer.report.lossless = False
            if self._sequence.owed(self._last):
                guess = await self._sequence.catch_up(self._last, lambda _: True)
            assert guess is not None, "one of the exits was heard"
            return self._commit([guess], self._last)
        self.answer.finished = token.token_id in self._sequence.end_tokens
        return self.answer.commit([token.token_id], Provenance.CLOUD, None, [token.confidence])

    def _commit(self, guesses: Sequence[ExitPrediction], at: int) -> Chunk:
        answer = self.answer
        confidences = [guess.confidence for guess in guesses]
        answer.report.exits[str(self._sequence.exits[at])] += len(guesses)
        answer.confidences += confidences
        answer.finished = guesses[-1].token_id in self._sequence.end_tokens
        return answer.commit([guess.token_id for guess in guesses], Provenance.EDGE, None, confidences)

    @property
    def _most_at_first(self) -> int:
        """How many tokens may come from the first exit in one go; none, if it need not be heard."""
        return 0 if self._exits.never(0) and self._last > 0 else self.answer.remaining

    def _sure_at(self, at: int) -> Callable[[float], bool]:
        """Asked of each confidence in turn, by the segments' thread: whether the token is taken from this exit."""
        if self._tail is None and at == self._last:
            return lambda _: True
        tokens = len(self.answer.committed) - self._prompt
        deeper = self._deeper[at].value or 0.0

        def sure(confidence: float) -> bool:
            nonlocal tokens
            now = time.perf_counter()
            self._began = self._began or now
            taken = self._exits.takes(at, confidence, AnswerPace(tokens, (now - self._began) * 1e3, deeper))
            tokens += taken
            return taken

        return sure

    def _close_report(self) -> None:
        report, sequence, tail = self.answer.report, self._sequence, self._tail
        report.edge_latency_ms = sequence.waited_ms
        report.edge_drawn = sequence.guesses
        report.owed = sum(map(sequence.owed, range(1, self._last + 1)))
        if tail:
            report.rounds = report.cloud_calls = tail.calls
            report.cloud_steps = report.tokens[Provenance.CLOUD]
            report.cloud_latency_ms = tail.waited_ms
            report.cloud_positions = tail.computed
            report.bytes_up, report.bytes_down = tail.bytes_up, tail.bytes_down
            report.owed += sequence.held[0] - tail.sent
        self.answer.close()
