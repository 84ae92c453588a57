"""The jobs that the event loop hands to an engine's thread: what they ask for, their results so far, their errors.

The thread writes results, the event loop reads those that are complete; neither holds a lock or waits for the other.
"""

import asyncio
import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
from llguidance import LLMatcher

from common.decoding.draft_yield import EarlyStop
from common.decoding.progress import waiting
from common.types import GREEDY, NEVER, Draft, Sampling, StopRule, TokenLogprob
from edge.llama.grammar import AnswerGrammar
from edge.llama.sampling import (
    Logits,
    biased,
    check_numbers,
    draw,
    is_greedy,
    log_probabilities,
    penalties,
    uniforms,
    without,
)


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

    async def wait(self, works_on: Callable[[Self], bool]) -> None:
        """Waits until there is something new to read; raises the error that the job failed with.

        `works_on` tells whether the job is a part of what the thread computes now.
        """
        with waiting("the edge's model", lambda: time.monotonic() if works_on(self) else None):
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
        self.kept = 0
        """Tokens whose KV was found when the job began."""
        self.began_at = self.last_token_at = 0.0
        """`time.perf_counter` when the job began, and when it drew its last token (seconds)."""

    @abstractmethod
    def rows(self, count: int) -> int:
        """After how many of the last of the next `count` pending tokens the job needs logits."""

    def begin(self, kept: int) -> None:
        """Starts the job: the KV cache holds its first `kept` tokens, the others are pending."""
        self.began_at = self.last_token_at = time.perf_counter()
        self.kept = kept
        self.pending = self.token_ids[kept:]
        self.done = not self.pending

    @abstractmethod
    def begin_again(self) -> None:
        """Goes on from what it has found so far, after its sequence was emptied."""


class DraftOptions(NamedTuple):
    """How to draw a draft and when to stop."""

    limit: int
    """Tokens at most."""
    sampling: Sampling = GREEDY
    top_logprobs: int = 0
    """How many alternatives to report for each token; 0: no log probabilities at all."""
    stop: StopRule = NEVER
    streaming: bool = False
    """Every token is reported to the owner at once, not only the end."""
    grammar_start: LLMatcher | None = None
    """The compiled grammar of `sampling`."""


class Generation(DecodeJob):
    """Draws tokens after `token_ids`."""

    grammar: AnswerGrammar | None = None
    """The grammar at the end of the answer so far; set by the thread when the job begins."""

    def __init__(self, lease: Lease, token_ids: list[int], options: DraftOptions) -> None:
        super().__init__(lease, token_ids)
        sampling = self.sampling = options.sampling
        self.options = options
        self._uniforms = uniforms(sampling, len(token_ids), options.limit)
        self._penalties = penalties(sampling, token_ids)
        self._takes_likeliest = is_greedy(sampling) and self._penalties is None and sampling.grammar is None
        self._first_end = (sampling.prompt_tokens or 0) + sampling.min_tokens if sampling.min_tokens else 0
        """Before this position no end token is drawn."""
        self._stop = EarlyStop(options.stop)
        self._tokens: list[int] = []
        self._probs: list[float] = []
        self._confidences: list[float] = []
        self._logprobs: list[TokenLogprob] = []
        self._reported = 0
        self._reported_at = 0.0

    def rows(self, count: int) -> int:
        return int(count == len(self.pending))

    def begin_again(self) -> None:
        self.pending = self.token_ids + self._tokens

    def choose(self, logits: Logits, likeliest: int, end_tokens: frozenset[int]) -> int:
        """The next token, from the logits after the last one, [V], unchanged here, and their argmax.

        Raises EngineError for logits that are no numbers, GrammarError as the grammar's `draw` does.
        """
        check_numbers(logits[likeliest])
        if bias := self.sampling.logit_bias:
            logits = biased(logits, bias)
            likeliest = int(logits.argmax())
        if len(self.token_ids) + len(self._tokens) < self._first_end and self.grammar is None:
            logits = without(logits, end_tokens)
            likeliest = int(logits.argmax())
        if self._takes_likeliest:
            return likeliest
        if self._penalties is not None:
            logits = logits.copy()
            self._penalties.apply(logits)
        choose = functools.partial(draw, sampling=self.sampling, uniform=self._uniforms[len(self._tokens)])
        token = choose(logits) if self.grammar is None else self.grammar.draw(logits, is_greedy(self.sampling), choose)
        if self._penalties is not None:
            self._penalties.add(token)
        return token

    def append(self, token: int, prob: float, confidence: float, logits: Logits, end: bool) -> None:
        """Adds the token drawn from `logits`, [V]; `end`: it ends the answer."""
        options = self.options
        if options.top_logprobs:
            self._logprobs += log_probabilities(logits[np.newaxis], [token], options.top_logprobs)
        self._probs.append(prob)
        self._confidences.append(confidence)
        self.last_token_at = time.perf_counter()
        stops = self._stop.ends_with(confidence)
        self._tokens.append(token)  # last, because the event loop reads the length of this list
        self.pending = [token]
        self.done = end or len(self._tokens) == options.limit or stops

    @property
    def has_drawn(self) -> bool:
        """Whether it has drawn its first token."""
        return bool(self._tokens)

    @property
    def has_news(self) -> bool:
        return self.done or (self.options.streaming and len(self._tokens) > self._reported)

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
            bool(tokens) and tokens[-1] in end_tokens and not self.sampling.ignore_eos,
            latency * 1e3,
            self._logprobs[begin:end] if self.options.top_logprobs else None,
            reused=self.kept,
        )


class Scoring(DecodeJob):
    """Computes the log probability of each token of a text given those before it; draws nothing."""

    def __init__(self, lease: Lease, token_ids: list[int], top: int) -> None:
        super().__init__(lease, token_ids)
        self._top = top
        self.scores: list[TokenLogprob | None] = [None]

    def rows(self, count: int) -> int:
        return count

    def begin_again(self) -> None:
        self.pending, self.scores = list(self.token_ids), [None]

    def score(self, logits: Logits) -> None:
        """Scores the next tokens of the text from the logits before each of them, [R, V]."""
        begin = len(self.scores)
        following = self.token_ids[begin : begin + len(logits)]
        self.scores += log_probabilities(logits[: len(following)], following, self._top)
        self.done = len(self.scores) == len(self.token_ids)
