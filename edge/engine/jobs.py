"""The jobs that the event loop hands to an engine's thread: what they ask for, their results so far, their errors.

The thread writes results, the event loop reads those that are complete; neither holds a lock or waits for the other.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from common.types import GREEDY, Draft, Sampling, TokenLogprob
from edge.llama.grammar import Grammar
from edge.llama.sampling import Logits, draw, is_greedy, log_probabilities, penalties, uniforms


class EngineJob:
    """Work of an engine's thread that a task of the event loop waits for.

    Created, awaited and cancelled in the event loop; everything else runs in the engine's thread.
    """

    def __init__(self) -> None:
        self.cancelled = False
        """Set by the owner; the thread drops the job before its next step."""
        self.done = False
        self.error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done = True

    def take_waiter(self) -> asyncio.Future[None] | None:
        """The future that the owner waits for, if there is something new; the caller must resolve it."""
        if self._waiter is None or not self.has_news:
            return None
        waiter, self._waiter = self._waiter, None
        return waiter

    @property
    def has_news(self) -> bool:
        """Whether the owner has something new to read."""
        return self.done

    async def wait(self) -> None:
        """Waits until there is something new to read; raises the error that the job failed with."""
        while not self.has_news:
            waiter = self._waiter = self._loop.create_future()
            if not self.has_news:  # else the result came before the thread could see the waiter
                await waiter
        if self.error is not None:
            raise self.error


class Lease(NamedTuple):
    """A sequence lent to one request of `tenant`. `reuse`: what the KV cache holds need not be decoded again."""

    sequence: int
    reuse: bool
    tenant: str = ""


class DecodeJob(EngineJob, ABC):
    """Tokens to decode in the sequence of a lease."""

    def __init__(self, lease: Lease, token_ids: list[int]) -> None:
        super().__init__()
        self.sequence, self.reuse, self.tenant = lease
        self.token_ids = token_ids
        self.pending: list[int] = []
        """Tokens still to decode; set when the job begins."""
        self.began_at = self.last_token_at = 0.0
        """`time.perf_counter` when the job began, and when it drew its last token (seconds)."""

    @abstractmethod
    def rows(self, count: int) -> int:
        """After how many of the last of the next `count` pending tokens the job needs logits."""

    def begin(self, kept: int) -> None:
        """Starts the job: the KV cache holds its first `kept` tokens, the others are pending."""
        self.began_at = self.last_token_at = time.perf_counter()
        self.pending = self.token_ids[kept:]
        self.done = not self.pending


class DraftOptions(NamedTuple):
    """How to draw a draft and when to stop."""

    limit: int
    """Tokens at most."""
    sampling: Sampling = GREEDY
    top_logprobs: int = 0
    """How many alternatives to report for each token; 0: no log probabilities at all."""
    stop_below: float = 0.0
    """The draft ends with the token that brings the product of confidences below this, in [0, 1]."""
    streaming: bool = False
    """Every token is reported to the owner at once, not only the end."""


class Generation(DecodeJob):
    """Draws tokens after `token_ids`."""

    grammar: Grammar | None = None
    """The JSON schema's grammar at the end of the answer so far; set by the thread when the job begins."""

    def __init__(self, lease: Lease, token_ids: list[int], options: DraftOptions) -> None:
        super().__init__(lease, token_ids)
        sampling = self.sampling = options.sampling
        self._options = options
        self._uniforms = uniforms(sampling, len(token_ids), options.limit)
        self._penalties = penalties(sampling, token_ids)
        self._takes_likeliest = is_greedy(sampling) and self._penalties is None and sampling.json_schema is None
        self._confidence_product = 1.0
        self._tokens: list[int] = []
        self._probs: list[float] = []
        self._confidences: list[float] = []
        self._logprobs: list[TokenLogprob] = []
        self._reported = 0
        self._reported_at = 0.0

    def rows(self, count: int) -> int:
        return int(count == len(self.pending))

    def choose(self, logits: Logits, likeliest: int) -> int:
        """The next token, from the logits after the last one, [V], unchanged here, and their argmax."""
        if self._takes_likeliest:
            return likeliest
        first, second = self._uniforms[len(self._tokens)]
        if self._penalties is not None:
            logits = logits.copy()
            self._penalties.apply(logits)
        token = draw(logits, self.sampling, first)
        if self.grammar is not None:
            token = self.grammar.constrain(token, lambda allowed: draw(allowed, self.sampling, second), logits)
        if self._penalties is not None:
            self._penalties.add(token)
        return token

    def append(self, token: int, prob: float, confidence: float, logits: Logits, end: bool) -> None:
        """Adds the token drawn from `logits`, [V]; `end`: it ends the answer."""
        options = self._options
        if options.top_logprobs:
            self._logprobs += log_probabilities(logits[np.newaxis], [token], options.top_logprobs)
        self._probs.append(prob)
        self._confidences.append(confidence)
        self.last_token_at = time.perf_counter()
        self._confidence_product *= confidence
        self._tokens.append(token)  # last, because the event loop reads the length of this list
        self.pending = [token]
        self.done = end or len(self._tokens) == options.limit or self._confidence_product < options.stop_below

    @property
    def has_drawn(self) -> bool:
        """Whether it has drawn its first token."""
        return bool(self._tokens)

    @property
    def has_news(self) -> bool:
        return self.done or (self._options.streaming and len(self._tokens) > self._reported)

    def part(self, end_tokens: frozenset[int]) -> Draft:
        """What was drawn since the last part; called in the event loop."""
        begin, end = self._reported, len(self._tokens)
        self._reported = end
        latency, self._reported_at = self.last_token_at - (self._reported_at or self.began_at), self.last_token_at
        tokens = self._tokens[begin:end]
        return Draft(
            tokens,
            self._probs[begin:end],
            self._confidences[begin:end],
            bool(tokens) and tokens[-1] in end_tokens,
            latency * 1e3,
            self._logprobs[begin:end] if self._options.top_logprobs else None,
        )


class Scoring(DecodeJob):
    """Computes the log probability of each token of a text given those before it; draws nothing."""

    def __init__(self, lease: Lease, token_ids: list[int], top: int) -> None:
        super().__init__(lease, token_ids)
        self._top = top
        self.scores: list[TokenLogprob | None] = [None]

    def rows(self, count: int) -> int:
        return count

    def score(self, logits: Logits) -> None:
        """Scores the next tokens of the text from the logits before each of them, [R, V]."""
        begin = len(self.scores)
        following = self.token_ids[begin : begin + len(logits)]
        self.scores += log_probabilities(logits[: len(following)], following, self._top)
        self.done = len(self.scores) == len(self.token_ids)
