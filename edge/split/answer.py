"""One answer of a split model: the first exit that is confident gives the token, else the last exit or the cloud."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from common.decoding.answer import Answer, Chunk
from common.decoding.fading import Mean
from common.decoding.request import DecodingRequest
from common.errors import EndpointError, RequestError
from common.types import Provenance, TokenLogprob
from edge.split.biases import penalties_as_biases
from edge.split.cloud_tail import CloudTail
from edge.split.early_exit import AnswerPace, LatencyAwareEarlyExit
from edge.split.segments import ExitPrediction, SegmentSequence


class SplitAnswer:
    """Answers one request; `run` yields chunks as they are committed, `answer` holds the rest.

    A position whose token an exit gave stays pending in the layers behind that exit, until a token that is below the
    threshold needs them. When the cloud fails the last exit answers, and `report.degraded` says why. Without a `tail`
    the edge answers alone. `deeper_ms`: for each exit, the mean time of a token below its threshold, over all answers.
    `top_logprobs`: how many alternatives each token names, those of the exit or of the cloud; 0: no log probabilities.
    """

    def __init__(
        self,
        sequence: SegmentSequence,
        request: DecodingRequest,
        exits: LatencyAwareEarlyExit,
        tail: CloudTail | None,
        deeper_ms: Sequence[Mean],
        top_logprobs: int = 0,
    ) -> None:
        self.answer = Answer(request.plan, list(request.prompt), request.max_tokens)
        self._sequence = sequence
        self._prompt_tokens = len(request.prompt)
        self._sampling = request.sampling
        self._exits = exits
        self._last = len(exits.thresholds) - 1
        self._tail = tail
        self._deeper_ms = deeper_ms
        self._top = top_logprobs
        self._began: float | None = None
        """When the first exit gave its first prediction, by `time.perf_counter`."""
        self.answer.report.exits = {str(layer): 0 for layer in sequence.exits}
        self.answer.report.cached_tokens = sequence.reused

    async def run(self) -> AsyncGenerator[Chunk, None]:
        answer, sequence = self.answer, self._sequence
        try:
            while answer.open:
                prediction: ExitPrediction | None = None
                new = answer.committed[sequence.held[0] :]
                drawn = sequence.draw(new, self._first_exit_limit, self._confident_at(0))
                async with aclosing(drawn) as parts:
                    async for part in parts:
                        prediction = part[-1]
                        if taken := part if prediction.confident else part[:-1]:
                            yield self._commit(taken, 0)
                if prediction is None or not prediction.confident:
                    yield await self._deep_token(prediction)
        finally:
            self._close_report()

    async def _deep_token(self, prediction: ExitPrediction | None) -> Chunk:
        """The next token, for which the first exit was below its threshold or was not computed."""
        refused_at = {0: time.perf_counter()}
        if self._tail:
            self._tail.upload(self._sequence.states)  # while the next segment computes
        for at in range(1, self._last + 1):
            if self._exits.disabled(at) and (self._tail or at < self._last):
                continue
            prediction = await self._sequence.catch_up(at, self._confident_at(at))
            if prediction.confident:
                chunk = self._commit([prediction], at)
                break
            refused_at[at] = time.perf_counter()
        else:
            chunk = await self._cloud_token(prediction)
        for at, since in refused_at.items():
            self._deeper_ms[at].add((time.perf_counter() - since) * 1e3)
        return chunk

    async def _cloud_token(self, prediction: ExitPrediction | None) -> Chunk:
        """The cloud's token; if the cloud fails, that of the last exit."""
        assert self._tail is not None, "alone, the last exit always gives the token"
        try:
            sampling = penalties_as_biases(self._sampling, self.answer.committed)
            token = await self._tail.token(self._sequence.states, sampling, self._top)
        except (EndpointError, RequestError) as error:
            if not self.answer.plan.fallback:
                raise
            self.answer.report.degraded = self.answer.report.degraded or error.message
            self.answer.report.lossless = False
            if self._sequence.pending(self._last):
                prediction = await self._sequence.catch_up(self._last, lambda _: True)
            assert prediction is not None, "one of the exits was computed"
            return self._commit([prediction], self._last)
        self.answer.end_if(token.token_id in self._sequence.end_tokens)
        logprobs = [TokenLogprob(token.token_id, token.logprob, token.top)] if self._top else None
        return self.answer.commit([token.token_id], Provenance.CLOUD, logprobs, [token.confidence])

    def _commit(self, predictions: Sequence[ExitPrediction], at: int) -> Chunk:
        answer = self.answer
        confidences = [prediction.confidence for prediction in predictions]
        answer.confidences += confidences
        answer.end_if(predictions[-1].token_id in self._sequence.end_tokens)
        logprobs = [each.logprob for each in predictions if each.logprob] if self._top else None
        exit = str(self._sequence.exits[at])
        return answer.commit([each.token_id for each in predictions], Provenance.EDGE, logprobs, confidences, exit)

    @property
    def _first_exit_limit(self) -> int:
        """How many tokens the first exit may give in a row; 0 if it need not be computed."""
        return 0 if self._exits.disabled(0) and self._last > 0 else self.answer.remaining

    def _confident_at(self, at: int) -> Callable[[float], bool]:
        """Whether a token is taken from this exit; the segments' thread asks it of each confidence in turn."""
        if self._tail is None and at == self._last:
            return lambda _: True
        tokens = len(self.answer.committed) - self._prompt_tokens
        deeper_ms = self._deeper_ms[at].value or 0.0

        def confident(confidence: float) -> bool:
            nonlocal tokens
            now = time.perf_counter()
            self._began = self._began or now
            taken = self._exits.takes(at, confidence, AnswerPace(tokens, (now - self._began) * 1e3, deeper_ms))
            tokens += taken
            return taken

        return confident

    def _close_report(self) -> None:
        report, sequence, tail = self.answer.report, self._sequence, self._tail
        report.edge_latency_ms = sequence.waited_ms
        report.edge_drawn = sequence.predictions
        report.owed = sum(sequence.own_pending(at) for at in range(1, self._last + 1))
        if tail:
            report.rounds = report.cloud_calls = tail.calls
            report.cloud_steps = report.tokens[Provenance.CLOUD]
            report.cloud_latency_ms = tail.waited_ms
            report.cloud_positions = tail.computed
            report.bytes_up, report.bytes_down = tail.bytes_up, tail.bytes_down
            report.owed += max(0, sequence.held[0] - max(tail.sent, sequence.reused))
        self.answer.close()
