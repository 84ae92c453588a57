"""The jobs that the event loop hands to the segments' thread, and what an exit predicts for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.types import Sampling, TokenLogprob
from edge.engine.jobs import EngineJob
from edge.llama.sampling import Logits, Penalties, biased, draw, is_greedy, log_probabilities, uniforms
from edge.llama.segment import States


class ExitPrediction(NamedTuple):
    """An exit's next token, and the probability of its likeliest token, in [0, 1].

    `confident`: that probability reaches the threshold, so the token is taken. `logprob`: under the softmax of the
    exit's own logits, if requested.
    """

    token_id: int
    confidence: float
    confident: bool
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class ExitRequest:
    """What a job wants of its segment's exit: up to `limit` next tokens, drawn by `sampling`; none if it is 0.

    `confident` tells in the segments' thread whether a token of this confidence is taken. `top_logprobs`: how many
    alternatives each prediction names; 0: no log probabilities. `penalties`: those of `sampling` after the tokens so
    far.
    """

    limit: int
    sampling: Sampling
    confident: Callable[[float], bool]
    top_logprobs: int = 0
    penalties: Penalties | None = None


class SegmentJob(EngineJob):
    """Inputs for one sequence of one segment, then the next tokens that its exit predicts.

    After a confident token the first segment goes on by itself, up to the request's limit; later segments predict one.
    """

    def __init__(
        self,
        segment: int,
        sequence: int,
        position: int,
        inputs: list[int] | States,
        states: States | None,
        exit: ExitRequest,
        all_inputs: list[int] | States,
    ) -> None:
        """`position`: of the first input; `states`, [>= positions, H], receives the segment's output for each.

        `all_inputs`: of all positions from 0 on, these included, should the segment have lost those before them.
        """
        super().__init__()
        self.segment = segment
        self.sequence = sequence
        self.position = position
        self.pending = inputs
        self.predictions: list[ExitPrediction] = []
        self._states = states
        self._all_inputs = all_inputs
        self._exit = exit
        self._seen = 0

    @property
    def wants_exit(self) -> bool:
        return self._exit.limit > 0

    def rows(self, count: int) -> int:
        """For how many of the last of `count` pending inputs the exit is computed."""
        return int(self.wants_exit and count == len(self.pending))

    def read(self, count: int, states: States | None) -> None:
        """Records that its next `count` inputs were computed; `states`, [count, H], is the output."""
        if self._states is not None and states is not None:
            self._states[self.position : self.position + count] = states
        self.position += count
        self.pending = self.pending[count:]
        self.done = not len(self.pending) and not self.wants_exit

    def start_over(self) -> None:
        """Its segment holds no position of the sequence any more: all of them are computed again."""
        self.pending = self._all_inputs[: self.position + len(self.pending)]
        self.position = 0

    @property
    def adjusts(self) -> bool:
        """Whether `adjusted` changes logits."""
        return bool(self._exit.sampling.logit_bias) or self._exit.penalties is not None

    def adjusted(self, logits: Logits) -> Logits:
        """The exit's logits, [V], with biases and penalties, in a copy where there are any."""
        if bias := self._exit.sampling.logit_bias:
            logits = biased(logits, bias)
        if self._exit.penalties is not None:
            logits = logits.copy()
            self._exit.penalties.apply(logits)
        return logits

    def choose(self, logits: Logits, likeliest: int) -> int:
        """The next token, from the exit's adjusted logits, [V]; `likeliest` is their argmax."""
        sampling = self._exit.sampling
        if is_greedy(sampling):
            return likeliest
        return draw(logits, sampling, uniforms(sampling, self.position, 1)[0])

    def predict(self, token: int, confidence: float, logits: Logits, end: bool) -> None:
        """Takes the exit's next token, with the `logits` of its own, [V]; `end`: it ends the answer."""
        confident, top = self._exit.confident(confidence), self._exit.top_logprobs
        if confident and self._exit.penalties is not None:
            self._exit.penalties.add(token)
        logprob = log_probabilities(logits[np.newaxis], [token], top)[0] if top else None
        self.predictions.append(ExitPrediction(token, confidence, confident, logprob))  # now the event loop sees it
        self.done = end or not confident or len(self.predictions) >= self._exit.limit
        if not self.done:
            self.pending = [token]

    @property
    def has_news(self) -> bool:
        return self.done or len(self.predictions) > self._seen

    def part(self) -> list[ExitPrediction]:
        """Its predictions since the last part."""
        begin, self._seen = self._seen, len(self.predictions)
        return self.predictions[begin : self._seen]
