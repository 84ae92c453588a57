"""Requests on their way through the engine's thread: what they want, what they have got, how their owners learn of it.

The thread writes, the event loop reads what is complete; neither waits for the other. Knows no model and no batch.
"""

import asyncio
import time
from abc import ABC, abstractmethod

import numpy as np

from common.types import Draft, Sampling, TokenLogprob
from edge.llama.grammar import Grammar
from edge.llama.sampling import Logits, draw, is_greedy, log_probabilities, penalties, uniforms


class Awaited:
    """Work of an engine's thread that a task in the event loop waits for; made there, done in the thread."""

    def __init__(self) -> None:
        self.cancelled = False
        """Set by the owner, who wants nothing more: the thread drops the work before its next step."""
        self.done = False
        self.fault: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def fail(self, fault: Exception) -> None:
        self.fault = fault
        self.done = True

    def take_waiter(self) -> asyncio.Future[None] | None:
        """The future that its owner waits for, if there is news for it; whoever takes it must resolve it."""
        if self._waiter is None or not self.has_news:
            return None
        waiter, self._waiter = self._waiter, None
        return waiter

    @property
    def has_news(self) -> bool:
        return self.done

    async def news(self) -> None:
        """Waits until there is some; raises what the work failed with."""
        while not self.has_news:
            waiter = self._waiter = self._loop.create_future()
            if not self.has_news:  # else it came before the thread could see the waiter
                await waiter
        if self.fault is not None:
            raise self.fault


class Job(Awaited, ABC):
    """Tokens to be decoded for one sequence."""

    def __init__(self, sequence: int, token_ids: list[int], reuse: bool) -> None:
        super().__init__()
        self.sequence = sequence
        self.token_ids = token_ids
        self.reuse = reuse
        self.pending: list[int] = []
        """What is still to be decoded; set when the job begins."""
        self.began = self.moment = 0.0
        """When it began, and when it last got something, as `time.perf_counter` counts."""

    @abstractmethod
    def rows(self, count: int) -> int:
        """After how many of the last of `count` pending tokens logits are wanted."""

    def begin(self, kept: int) -> None:
        """The sequence holds the first `kept` tokens; the rest is to be decoded."""
        self.began = self.moment = time.perf_counter()
        self.pending = self.token_ids[kept:]
        self.done = not self.pending


class Generation(Job):
    """Draws up to `limit` tokens. `streaming`: every token is news, else only the end is."""

    grammar: Grammar | None = None
    """The schema's, following this answer; lent by the thread when the job begins."""

    def __init__(
        self,
        sequence: int,
        token_ids: list[int],
        reuse: bool,
        limit: int,
        sampling: Sampling,
        top_logprobs: int = 0,
        stop_below: float = 0.0,
        streaming: bool = False,
    ) -> None:
        super().__init__(sequence, token_ids, reuse)
        self.sampling = sampling
        self._limit = limit
        self._top_logprobs = top_logprobs
        self._stop_below = stop_below
        self._streaming = streaming
        self._uniforms = uniforms(sampling, len(token_ids), limit)
        self._penalties = penalties(sampling, token_ids)
        self._plain = is_greedy(sampling) and self._penalties is None and sampling.json_schema is None
        self._running = 1.0
        self._tokens: list[int] = []
        self._probs: list[float] = []
        self._confidences: list[float] = []
        self._logprobs: list[TokenLogprob] = []
        self._seen = 0
        self._seen_at = 0.0

    def rows(self, count: int) -> int:
        return int(count == len(self.pending))

    def choose(self, logits: Logits, likeliest: int) -> int:
        """The next token, from the logits before it, [V], which stay as they are, and the largest of them."""
        if self._plain:
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
        """Takes the token drawn after `logits`, [V]; `end`: it ends the answer."""
        if self._top_logprobs:
            self._logprobs += log_probabilities(logits[np.newaxis], [token], self._top_logprobs)
        self._probs.append(prob)
        self._confidences.append(confidence)
        self.moment = time.perf_counter()
        self._running *= confidence
        self._tokens.append(token)  # last: what the event loop counts
        self.pending = [token]
        self.done = end or len(self._tokens) == self._limit or self._running < self._stop_below

    @property
    def drawn(self) -> int:
        return len(self._tokens)

    @property
    def has_news(self) -> bool:
        return self.done or (self._streaming and len(self._tokens) > self._seen)

    def part(self, end_tokens: frozenset[int]) -> Draft:
        """What was drawn since the last part."""
        begin, end = self._seen, len(self._tokens)
        self._seen = end
        latency, self._seen_at = self.moment - (self._seen_at or self.began), self.moment
        tokens = self._tokens[begin:end]
        return Draft(
            tokens,
            self._probs[begin:end],
            self._confidences[begin:end],
            bool(tokens) and tokens[-1] in end_tokens,
            latency * 1e3,
            self._logprobs[begin:end] if self._top_logprobs else None,
        )


class Scoring(Job):
    """The log probability of each token of a text after those before it; nothing is drawn."""

    def __init__(self, sequence: int, token_ids: list[int], reuse: bool, top: int) -> None:
        super().__init__(sequence, token_ids, reuse)
        self._top = top
        self.scores: list[TokenLogprob | None] = [None]

    def rows(self, count: int) -> int:
        return count

    def score(self, logits: Logits) -> None:
        """Takes the logits after the next tokens of the text, [R, V]."""
        begin = len(self.scores)
        following = self.token_ids[begin : begin + len(logits)]
        self.scores += log_probabilities(logits[: len(following)], following, self._top)
        self.done = len(self.scores) == len(self.token_ids)
