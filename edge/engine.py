"""The edge's language model: llama.cpp's model and context, and the one thread that runs them.

Knows nothing of HTTP, of the cloud or of what becomes of a draft. Only this file imports llama_cpp, and only its
low-level interface: one context that serves many sequences, logits read where llama.cpp leaves them.
"""

import asyncio
import ctypes
import logging
import math
import os
import secrets
import threading
import time
from collections import abc, deque
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Self, SupportsFloat

import llama_cpp as c
import numpy as np
from numpy.typing import NDArray

from common.errors import ContextLengthError, EngineError, FrameworkError, StartError
from common.types import GREEDY, Draft, Sampling
from edge.confidence import ConfidenceCalculator

Logits = NDArray[np.float32]
Confidence = Callable[[Logits], SupportsFloat]
"""From one row of logits, [V], to a number in [0, 1]; called in the engine's thread, must not keep the row."""

CHUNK = 256
"""Prompt tokens decoded in one step: what a waiting sequence waits for at most."""
STUCK_AFTER_S = 30.0
"""A step that takes longer than this counts as never ending."""
GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy, as they are for vLLM."""

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
        self._load: Callable[[], _Llama] = lambda: _Llama(
            path, context_length, gpu_layers, threads or max(1, _cores() - 1), sequences
        )
        self._thread = threading.Thread(target=self._run, name="edge-engine", daemon=True)
        self._llama: _Llama | None = None
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
        return self._llama is not None and not self._closing and not stuck

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

    def _model(self) -> "_Llama":
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
        uniforms = _uniforms(sampling, len(token_ids), limit)
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
                token = draw(logits, sampling, uniforms[len(drawn)])
                drawn.append(token)
                probs.append(_probability(logits, token))
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


class _Llama:
    """llama.cpp's model and context, and what each sequence of its KV cache holds.

    Belongs to the engine's thread, except for the vocabulary. Raises StartError in one line if it cannot be loaded.
    """

    def __init__(self, path: str, context_length: int, gpu_layers: int, threads: int, sequences: int) -> None:
        _check_file(path)
        c.llama_backend_init()
        c.llama_log_set(_log, ctypes.c_void_p(None))
        settings = c.llama_model_default_params()
        settings.n_gpu_layers = gpu_layers
        self._model = c.llama_model_load_from_file(path.encode(), settings)
        if not self._model:
            raise StartError(f"model file {path}: llama.cpp cannot load it")
        trained = c.llama_model_n_ctx_train(self._model)
        if context_length > trained:
            logger.warning(
                "context length cut from %d to the %d that %s was trained for", context_length, trained, path
            )
        self.context_length: int = min(context_length, trained)
        self.sequences = sequences
        options = c.llama_context_default_params()
        options.n_ctx = self.context_length * sequences
        options.n_batch = options.n_ubatch = CHUNK
        options.n_seq_max = sequences
        options.kv_unified = True
        if gpu_layers == 0:
            # Flash attention on a CPU adds up in half precision, cell by cell: where in the cache a token happens to
            # lie would then change what is drawn.
            options.flash_attn_type = c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.n_threads = options.n_threads_batch = threads
        self._context = c.llama_init_from_model(self._model, options)
        if not self._context:
            c.llama_model_free(self._model)
            raise StartError(f"model file {path}: no memory for {sequences} contexts of {self.context_length} tokens")
        self._memory = c.llama_get_memory(self._context)
        self.held: list[list[int]] = [[] for _ in range(sequences)]
        """The token ids in each sequence's KV cache, by position."""
        self._vocab = c.llama_model_get_vocab(self._model)
        self.vocab_size: int = c.llama_vocab_n_tokens(self._vocab)
        self.end_tokens = frozenset(t for t in range(self.vocab_size) if c.llama_vocab_is_eog(self._vocab, t))
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self.bos = self._special_text(c.llama_vocab_bos(self._vocab))
        self.eos = self._special_text(c.llama_vocab_eos(self._vocab))
        self._row = ctypes.c_float * self.vocab_size
        self._batch = _Batch(CHUNK)

    def free(self) -> None:
        c.llama_free(self._context)
        c.llama_model_free(self._model)

    def rewind(self, sequence: int, length: int) -> int:
        """Forgets all but the first `length` tokens; returns how many are left: none if only all can be."""
        if not c.llama_memory_seq_rm(self._memory, sequence, length, -1):
            c.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            length = 0
        del self.held[sequence][length:]
        return length

    def keep(self, sequence: int, token_ids: list[int]) -> int:
        """Makes `sequence` hold the longest beginning of `token_ids` that any sequence holds; returns its length."""
        lengths = [_common_prefix(held, token_ids) for held in self.held]
        longest = max(range(self.sequences), key=lengths.__getitem__)
        if lengths[longest] > lengths[sequence]:
            self.rewind(sequence, 0)
            c.llama_memory_seq_cp(self._memory, longest, sequence, 0, lengths[longest])
            self.held[sequence] = token_ids[: lengths[longest]]
        return self.rewind(sequence, lengths[longest])

    def decode(self, sequence: int, token_ids: list[int]) -> Logits:
        """Appends up to CHUNK tokens; returns the logits after the last, valid until the next decode."""
        held = self.held[sequence]
        if code := c.llama_decode(self._context, self._batch.fill(sequence, token_ids, len(held))):
            self.rewind(sequence, 0)
            raise EngineError(f"llama.cpp could not decode {len(token_ids)} tokens (code {code})")
        held += token_ids
        row = c.llama_get_logits_ith(self._context, -1)
        return np.frombuffer(self._row.from_address(ctypes.addressof(row.contents)), np.float32)

    def meta(self, key: str) -> str | None:
        """A string from the file's header."""
        size = c.llama_model_meta_val_str(self._model, key.encode(), b"", 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        c.llama_model_meta_val_str(self._model, key.encode(), buffer, size + 1)
        return buffer.value.decode(errors="replace")

    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        room = len(text) + 8
        ids = (c.llama_token * room)()
        count = c.llama_tokenize(self._vocab, text, len(text), ids, room, add_special, parse_special)
        assert count >= 0, "more tokens than bytes"
        return list(ids[:count])

    def piece(self, token_id: int, special: bool) -> bytes:
        key = (token_id, special)
        if key not in self._pieces:
            size = -c.llama_token_to_piece(self._vocab, token_id, b"", 0, 0, special)
            buffer = ctypes.create_string_buffer(max(size, 0))
            c.llama_token_to_piece(self._vocab, token_id, buffer, size, 0, special)
            self._pieces[key] = buffer.raw
        return self._pieces[key]

    def _special_text(self, token_id: int) -> str:
        # Where a file names no token for a role, llama.cpp may name an ordinary one.
        special = token_id >= 0 and c.llama_vocab_is_control(self._vocab, token_id)
        return self.piece(token_id, True).decode() if special else ""


class _Batch:
    """A llama_batch over numpy arrays, so that filling it takes no loop; only the last token asks for logits."""

    def __init__(self, room: int) -> None:
        self._token, self._position, self._sequence, self._one = (np.ones(room, np.int32) for _ in range(4))
        self._sequence_at = self._sequence.ctypes.data + self._sequence.itemsize * np.arange(room, dtype=np.uintp)
        self._wants_logits = np.zeros(room, np.int8)
        self._struct = c.llama_batch(
            0,
            _pointer(self._token, c.llama_token),
            None,
            _pointer(self._position, c.llama_pos),
            _pointer(self._one, ctypes.c_int32),
            _pointer(self._sequence_at, ctypes.POINTER(c.llama_seq_id)),
            _pointer(self._wants_logits, ctypes.c_int8),
        )

    def fill(self, sequence: int, token_ids: list[int], position: int) -> c.llama_batch:
        """The batch that appends `token_ids` to `sequence` at `position`; valid until the next call."""
        count = len(token_ids)
        self._token[:count] = token_ids
        self._position[:count] = range(position, position + count)
        self._sequence[:count] = sequence
        self._wants_logits[:count] = 0
        self._wants_logits[count - 1] = 1
        self._struct.n_tokens = count
        return self._struct


def draw(logits: Logits, sampling: Sampling, uniform: float) -> int:
    """The token that `uniform`, in [0, 1), picks from the distribution that `sampling` makes of `logits`, [V].

    Temperature first, then top-k, then top-p, as vLLM has it.
    """
    if sampling.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -sampling.top_k)[-sampling.top_k]] = -np.inf
    weights = np.exp(scaled)
    if sampling.top_p < 1:
        largest_first = np.sort(weights)[::-1]
        mass = np.cumsum(largest_first, dtype=np.float64)
        weights[weights < largest_first[np.searchsorted(mass[:-1], sampling.top_p * mass[-1])]] = 0
    mass = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(mass[:-1], uniform * mass[-1], side="right"))


def _uniforms(sampling: Sampling, position: int, count: int) -> list[float]:
    """One number in [0, 1) for each of `count` positions from `position` on, made of the seed and the position."""
    if sampling.temperature < GREEDY_BELOW:
        return [0.0] * count
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64
    # Philox makes four numbers for each value of its counter: one row for each position.
    rows: NDArray[np.float64] = np.random.Generator(np.random.Philox(key=seed, counter=position)).random((count, 4))
    return [float(first) for first in rows[:, 0]]


def _probability(logits: Logits, token: int) -> float:
    """The token's probability under the full softmax; above 0."""
    peak = logits.max()
    return math.exp(logits[token] - peak) / float(np.exp(logits - peak).sum())


def _common_prefix(left: list[int], right: list[int]) -> int:
    """The length of the longest common prefix, by halving, so that the comparing is done by whole slices."""
    same, end = 0, min(len(left), len(right))
    half = end  # the whole is what usually agrees
    while same < end:
        if left[same:half] == right[same:half]:
            same = half
        else:
            end = half - 1
        half = (same + end + 1) // 2
    return same


def _worth(held: list[int], wanted: list[int]) -> int:
    """How many of the `held` tokens taking over their sequence would save; 0 if more of them would be lost."""
    common = _common_prefix(held, wanted)
    return common if 2 * common >= len(held) else 0


def _check_file(path: str) -> None:
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise StartError(f"model file {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise StartError(f"model file {path}: not a GGUF file")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _promise() -> Future[None]:
    """A future that is kept even if nobody waits any more."""
    promise: Future[None] = Future()
    promise.set_running_or_notify_cancel()
    return promise


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


@c.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: Any) -> None:
    """llama.cpp's own talk: errors are logged, the rest is dropped."""
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        logger.error("%s", text.decode(errors="replace").strip())
