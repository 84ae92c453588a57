"""A run of a model's layers with an exit after it, through llama.cpp's C interface. Knows no threads and no thresholds.

The first segment is fed token ids, later ones the hidden states that the one before left. llama.cpp hands out no state
before its last norm: a callback reads it in the middle of the step, after the last layer.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple

import llama_cpp as c
import numpy as np

from common.errors import ConfigError, EngineError
from edge.llama.batch import Batch, BatchEntry, States
from edge.llama.context import CHUNK, LlamaContext
from edge.llama.sampling import Logits
from edge.llama.vocabulary import LlamaVocabulary

__all__ = ["CHUNK", "Feed", "LlamaSegment", "States", "Step"]

# Through PyDLL a call keeps the interpreter's lock, which the callback has anyway: giving it up and taking it again
# between two operations of the model would make it wait for the event loop.
_ggml = ctypes.PyDLL(c.llama_cpp._lib._name)  # which finds the ggml that it uses itself
_ggml.ggml_get_name.argtypes = (ctypes.c_void_p,)
_ggml.ggml_get_name.restype = ctypes.c_char_p
_ggml.ggml_backend_tensor_get.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
_ggml.ggml_backend_tensor_get.restype = None


class Feed(NamedTuple):
    """Token ids, or states [n, H], that a step appends to a sequence; the exit is heard after its last `rows`."""

    sequence: int
    inputs: list[int] | States
    rows: int


class Step(NamedTuple):
    """What came of a step; valid until the segment's next step.

    `states`, [n, H], are those after its last layer, one for each input, if it shows them; `logits`, [R, V], its
    exit's, after the inputs where they were wanted; all in the order of the feeds.
    """

    states: States | None
    logits: Logits


class LlamaSegment:
    """One segment's model and context, and how much each sequence of its KV cache holds.

    Belongs to one thread, except for the vocabulary and `abort`. Raises StartError if it cannot be loaded, ConfigError
    if it is not of the shape that its manifest says: `layers`, states of `width`, `vocab_size` tokens. All sequences
    share one cache, so that any of them, however much each is fed, are computed together. The last segment, whose
    states nobody is fed, does not show them.
    """

    def __init__(
        self,
        path: str,
        layers: int,
        width: int,
        vocab_size: int,
        *,
        first: bool,
        shows_states: bool = True,
        context_length: int,
        gpu_layers: int = 0,
        threads: int = 1,
        sequences: int = 1,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
    ) -> None:
        self._last = f"l_out-{layers - 1}".encode()
        self._states = np.zeros((CHUNK, width), np.float32)
        self._address = self._states.ctypes.data
        self._bytes = 0
        """Of the states that the step under way leaves; none, once they are read."""
        self._wants_logits = False
        self.shows_states = shows_states
        self._callback = c.ggml_backend_sched_eval_callback(self._on_node())
        on_node = self._callback if shows_states else None
        self._context = LlamaContext(
            path, context_length, gpu_layers, threads, sequences, kv_type, flash_attention, True, on_node
        )
        try:
            _check_shape(path, self._context.model, layers, width, vocab_size)
        except ConfigError:
            self._context.free()
            raise
        self.context_length = self._context.length
        self.vocab_size = vocab_size
        self.held = [0] * sequences
        """How many positions each sequence's KV holds."""
        self._batch = Batch(CHUNK, 0 if first else width)

    @property
    def vocabulary(self) -> LlamaVocabulary:
        return LlamaVocabulary(self._context.model)

    def free(self) -> None:
        self._context.free()

    def forget(self, sequence: int) -> None:
        self._context.cut(sequence, 0)
        self.held[sequence] = 0

    def abort(self, wanted: bool) -> None:
        """Makes the step under way, and any other until this is taken back, end at once; from any thread."""
        self._context.abort(wanted)

    def decode(self, feeds: Sequence[Feed]) -> Step | None:
        """Appends up to CHUNK inputs in one step.

        Where the exit is heard nowhere, its norm and head are not computed; where it is, and states are shown, they
        are for all inputs. None: `abort` ended the step, and every sequence is as it was before. After an EngineError
        those of `feeds` hold nothing.
        """
        # Before the last layer's MLP llama.cpp drops rows whose logits nobody wants. Where their states are wanted, it
        # must take all for wanted.
        show = self.shows_states
        batch = self._batch.fill(
            BatchEntry(at, self.held[at], inputs, len(inputs) if show else rows) for at, inputs, rows in feeds
        )
        count: int = batch.n_tokens
        self._bytes, self._wants_logits = self._states[:count].nbytes, any(feed.rows for feed in feeds)
        if not self._compute(batch, feeds):
            return None
        for at, inputs, _ in feeds:
            self.held[at] += len(inputs)
        return Step(self._states[:count] if show else None, self._logits(feeds, count))

    def _compute(self, batch: c.llama_batch, feeds: Sequence[Feed]) -> bool:
        try:
            done = self._context.decode(batch)
            if done and self.shows_states and self._bytes:
                raise EngineError(f"llama.cpp did not show the states after {self._last.decode()}")
        except EngineError:
            for feed in feeds:
                self.forget(feed.sequence)
            raise
        if not done:
            for at, _, _ in feeds:
                self._context.cut(at, self.held[at])
        return done

    def _logits(self, feeds: Sequence[Feed], count: int) -> Logits:
        wanted = sum(feed.rows for feed in feeds)
        if not self.shows_states or wanted in (0, count):
            return self._context.logits(wanted, self.vocab_size)
        ends = np.cumsum([len(feed.inputs) for feed in feeds])
        rows = [row for end, feed in zip(ends, feeds, strict=True) for row in range(end - feed.rows, end)]
        return self._context.logits(count, self.vocab_size)[rows]

    def _on_node(self) -> Callable[[int, bool, int | None], bool]:
        """llama.cpp asks it before each node whether to show it, and then shows it: whether to go on after it."""
        name_of, last = _ggml.ggml_get_name, self._last  # asked some 40 times for each layer of a step

        def on_node(node: int, ask: bool, _: int | None) -> bool:
            if ask:
                return name_of(node) == last  # type: ignore[no-any-return]
            _ggml.ggml_backend_tensor_get(node, self._address, 0, self._bytes)
            self._bytes = 0
            return self._wants_logits

        return on_node


def _check_shape(path: str, model: object, layers: int, width: int, vocab_size: int) -> None:
    found = (
        c.llama_model_n_layer(model),
        c.llama_model_n_embd(model),
        c.llama_vocab_n_tokens(c.llama_model_get_vocab(model)),
    )
    if found != (layers, width, vocab_size):
        names = "layers", "numbers a state", "tokens"
        told, wanted = (
            ", ".join(f"{n} {name}" for n, name in zip(shape, names, strict=True))
            for shape in (found, (layers, width, vocab_size))
        )
        raise ConfigError(f"segment {path}: has {told}; its manifest says {wanted}")
