"""The edge's language model and the one thread that runs it. Knows nothing of HTTP, the cloud, or a draft's fate."""

import asyncio
import logging
import os
import threading
import time
from collections import abc, deque
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, Self, SupportsFloat

from common.errors import ContextLengthError, EngineError, FrameworkError
from common.types import GREEDY, Draft, Sampling
from edge.confidence import ConfidenceCalculator
from edge.llama import CHUNK, Llama, common_prefix
from edge.sampling import Logits, draw, probability, uniforms

Confidence = Callable[[Logits], SupportsFloat]
"""From one row of logits, [V], to a number in [0, 1]; called in the engine's thread, must not keep the row."""

STUCK_AFTER_S = 30.0
"""A step that takes longer than this counts as never ending."""

logger = logging.getLogger(__name__)


class EdgeEngine:
    """Drafts tokens for up to `sequences` owners at a time; used from one event loop, `start` to `close`.

    `context_length` tokens fit in each sequence (cut to what the model was trained for); `gpu_layers` -1 means all;
    `threads` 0 leaves one core to the event loop. Steps of different sequences take turns.
    """

    def __init__(
        self,
        path: str,
        context_length: int = 2048,
        gpu_layers: int = 0,
        threads: int = 0,
        sequences: int = 4,
        confidence: Confidence | None = None,
    ) -> None:
        self.path = path
        self._confidence = confidence or ConfidenceCalculator().of_logits
        self._load: Callable[[], Llama] = lambda: Llama(
            path, context_length, gpu_layers, threads or max(1, _cores() - 1), sequences
        )
        self._thread = threading.Thread(target=self._run, name="edge-engine", daemon=True)
        self._llama: Llama | None = None
        self._started: Future[None] = _promise()
        self._stopped: Future[None] = _promise()
        self._closing = False
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._step_began: float | None = None
        self._free = list(range(sequences))
        """Sequence ids without an owner, the longest unused first."""
        self._room = asyncio.Semaphore(sequences)
        self._counters = dict.fromkeys(("drafts", "drafted_tokens", "prompt_tokens", "reused_prompt_tokens"), 0)

    async def start(self) -> None:
        """Loads the model in the engine's thread, once; raises StartError, and then nothing is left running."""
        if self._thread.ident is None:
            self._thread.start()
        try:
            await asyncio.wrap_future(self._started)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Fails what still waits with EngineError, frees the model and ends the thread."""
        self._closing = True
        self._jobs.put(None)
        if self._thread.ident is not None:
            await asyncio.wrap_future(self._stopped)
            self._thread.join()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @asynccontextmanager
    async def sequence(self, token_ids: abc.Sequence[int] = (), reuse: bool = True) -> AsyncIterator["Sequence"]:
        """Lends one sequence; waits for a free one.

        Preferred is the one that holds most of the beginning of `token_ids`, unless it would lose more than it could
        keep, else the longest unused. Without `reuse` nothing is kept from one draft to the next (F3 off).
        """
        llama = self._model()
        known = list(token_ids) if reuse else []
        async with self._room:
            lent = max(self._free, key=lambda free: _worth(llama.held[free], known))
            self._free.remove(lent)
            try:
                yield Sequence(self, lent, reuse)
            finally:
                self._free.append(lent)

    @property
    def alive(self) -> bool:
        """Whether the model is loaded and its thread is not stuck in a step."""
        began = self._step_began
        stuck = began is not None and time.monotonic() - began > STUCK_AFTER_S
        return self._llama is not None and self._thread.is_alive() and not self._closing and not stuck

    def stats(self) -> dict[str, int]:
        """Counts since the start, and the sequences lent out now."""
        lent = self._model().sequences - len(self._free)
        return self._counters | {"sequences": self._model().sequences, "sequences_lent": lent}

    # The vocabulary never changes: what follows may be called from any thread between start and close.

    @property
    def vocab_size(self) -> int:
        return self._model().vocab_size

    @property
    def context_length(self) -> int:
        """Tokens that fit in one sequence, prompt and answer together."""
        return self._model().context_length

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._model().end_tokens

    @property
    def model_name(self) -> str:
        """What the file calls its model, else the file's own name."""
        return self._model().meta("general.name") or Path(self.path).stem

    @property
    def chat_template(self) -> str | None:
        return self._model().meta("tokenizer.chat_template")

    @property
    def bos(self) -> str:
        """The text of the token that begins prompts; empty if there is none."""
        return self._model().bos

    @property
    def eos(self) -> str:
        """The text of the token that ends answers; empty if there is none."""
        return self._model().eos

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, begun as the model likes if `add_special`; `parse_special` reads `<|user|>` as one."""
        return self._model().tokenize(text.encode(), add_special, parse_special)

    def piece(self, token_id: int, special: bool = False) -> bytes:
        """The bytes of one token, maybe part of a character; none for a special token unless `special`."""
        return self._model().piece(token_id, special)

    def detokenize(self, token_ids: abc.Sequence[int], special: bool = False) -> str:
        """The text of `token_ids`; bytes that are no character become U+FFFD."""
        return b"".join(self.piece(token, special) for token in token_ids).decode(errors="replace")

    def _model(self) -> Llama:
        if self._llama is None or self._closing:
            raise EngineError("the edge model is not running")
        return self._llama

    async def _do(self, steps: Generator[None, None, Draft]) -> Draft:
        """Has the engine's thread go through `steps`; once the awaiting task is cancelled no further step begins."""
        self._model()
        job = _Job(steps, Future())
        self._jobs.put(job)
        return await asyncio.wrap_future(job.result)

    def _run(self) -> None:
        """The engine's thread."""
        try:
            self._llama = self._load()
        except Exception as fault:
            self._started.set_exception(fault)
        else:
            self._started.set_result(None)
            self._serve()
            self._llama.free()
        self._stopped.set_result(None)

    def _serve(self) -> None:
        """Gives each job a step in turn until `close`."""
        turns: deque[_Job] = deque()
        while True:
            while not turns or not self._jobs.empty():
                job = self._jobs.get()
                if job is None:
                    for waiting in turns:
                        waiting.fail(EngineError("the edge model was stopped"))
                    return
                turns.append(job)
            self._step_began = time.monotonic()
            if turns[0].step():
                turns.rotate(-1)
            else:
                turns.popleft()
            self._step_began = None

    def _draft(
        self, sequence: int, reuse: bool, token_ids: list[int], limit: int, sampling: Sampling
    ) -> Generator[None, None, Draft]:
        """One draft, a step at a time: each yield follows one call of the model."""
        began = time.perf_counter()
        llama = self._model()
        randoms = uniforms(sampling, len(token_ids), limit)
        drawn: list[int] = []
        probs: list[float] = []
        confidences: list[float] = []
        pending = token_ids[llama.keep(sequence, token_ids[:-1]) if reuse else llama.rewind(sequence, 0) :]
        self._counters["prompt_tokens"] += len(token_ids)
        self._counters["reused_prompt_tokens"] += len(token_ids) - len(pending)
        while pending:
            logits = llama.decode(sequence, pending[:CHUNK])
            pending = pending[CHUNK:]
            if not pending and len(drawn) < limit:
                token = draw(logits, sampling, randoms[len(drawn)])
                drawn.append(token)
                probs.append(probability(logits, token))
                confidences.append(float(self._confidence(logits)))
                if len(drawn) < limit and token not in llama.end_tokens:
                    pending = [token]
            if pending:
                yield
        self._counters["drafts"] += 1
        self._counters["drafted_tokens"] += len(drawn)
        finished = bool(drawn) and drawn[-1] in llama.end_tokens
        return Draft(drawn, probs, confidences, finished, (time.perf_counter() - began) * 1e3)


class Sequence:
    """A lease on one of llama.cpp's sequences; its owner asks for one draft at a time."""

    def __init__(self, engine: EdgeEngine, sequence: int, reuse: bool) -> None:
        self._engine = engine
        self._sequence = sequence
        self._reuse = reuse

    async def draft(self, token_ids: abc.Sequence[int], limit: int, sampling: Sampling = GREEDY) -> Draft:
        """Draws up to `limit` tokens after `token_ids`; fewer at the end of the answer or of the context.

        `probs` are those of the model's unmodified softmax. What a position draws depends on the tokens before it
        and on `sampling`, seed included, not on how an answer is cut into drafts; only a near-tie may fall otherwise
        when what precedes it was decoded in other portions. Raises ContextLengthError if `token_ids` alone do not
        fit; if they fit exactly, the draft is empty.
        """
        engine, prefix = self._engine, list(token_ids)
        room = engine.context_length - len(prefix)
        if room < 0:
            raise ContextLengthError(
                f"{len(prefix)} tokens do not fit the edge model's context of {engine.context_length}"
            )
        return await engine._do(engine._draft(self._sequence, self._reuse, prefix, min(limit, room), sampling))


class _Job(NamedTuple):
    """A draft on its way through the engine's thread."""

    steps: Generator[None, None, Draft]
    result: Future[Draft]

    def step(self) -> bool:
        """Goes one step on; whether there is another."""
        if self.result.cancelled():
            return False
        try:
            next(self.steps)
        except StopIteration as end:
            if self.result.set_running_or_notify_cancel():
                self.result.set_result(end.value)
        except Exception as fault:
            if not isinstance(fault, FrameworkError):
                logger.exception("a draft failed")
            self.fail(fault)
        else:
            return True
        return False

    def fail(self, fault: Exception) -> None:
        if self.result.set_running_or_notify_cancel():
            self.result.set_exception(fault)


def _worth(held: list[int], wanted: list[int]) -> int:
    """How many of the `held` tokens taking over their sequence would save; 0 if more of them would be lost."""
    common = common_prefix(held, wanted)
    return common if 2 * common >= len(held) else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _promise() -> Future[None]:
    """A future that is kept even if nobody waits any more."""
    promise: Future[None] = Future()
    promise.set_running_or_notify_cancel()
    return promise
