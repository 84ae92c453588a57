"""One segment of a split model in llama.cpp: consecutive layers, then an exit that predicts the next token.

The first segment takes token ids, the later ones take the hidden states of the segment before. llama.cpp returns hidden
states only after its final norm, so a callback reads those of the last layer in the middle of the step.
"""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import llama_cpp as c
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from common.config_edge import EdgeModelConfig
from common.errors import ConfigError, EngineError
from edge.llama.batch import Batch, BatchEntry, States, pointer
from edge.llama.context import CHUNK, LlamaContext
from edge.llama.sampling import Logits
from edge.llama.vocabulary import LlamaVocabulary

__all__ = ["CHUNK", "Feed", "LlamaSegment", "SegmentKV", "SegmentShape", "States", "Step"]

# A call through PyDLL keeps the interpreter's lock, which the callback holds anyway: if it released the lock between
# two operations of the model, it would have to wait for the event loop.
_ggml = ctypes.PyDLL(c.llama_cpp._lib._name)  # resolves the symbols of the ggml that llama.cpp itself uses
_ggml.ggml_get_name.argtypes = (ctypes.c_void_p,)
_ggml.ggml_get_name.restype = ctypes.c_char_p
_ggml.ggml_backend_tensor_get.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
_ggml.ggml_backend_tensor_get.restype = None
_ggml.ggml_backend_tensor_set.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
_ggml.ggml_backend_tensor_set.restype = None


class SegmentShape(NamedTuple):
    layers: int
    width: int
    """H, the numbers in one hidden state."""
    vocab_size: int


class Feed(NamedTuple):
    """Token ids, or states [n, H], that a step appends to a sequence; the exit is computed after its last `rows`."""

    sequence: int
    inputs: list[int] | States
    rows: int


class Step(NamedTuple):
    """The results of a step, in the order of the feeds; valid until the segment's next step.

    `states`, [n, H]: after the last layer, one for each input; None if the segment does not return states. `logits`,
    [R, V]: of the exit, after the inputs for which it was requested.
    """

    states: States | None
    logits: Logits


class SegmentKV(NamedTuple):
    """The KV of `held` positions, as llama.cpp writes it."""

    held: int
    data: NDArray[np.uint8]


class LlamaSegment:
    """One segment's model and context; used in one thread, except for `vocabulary` and `abort`.

    Always uses a unified KV, so that feeds of any lengths are computed together. `first`: takes token ids, not states.
    `shows_states` False: the step returns no states (nothing follows the last segment). `shared`: the file of its head,
    if that is not its own. `translator`: applied to states before the exit's norm and head. Raises StartError if the
    file `config.path` cannot be loaded, ConfigError if it does not have the shape that its manifest says.
    """

    def __init__(
        self,
        config: EdgeModelConfig,
        shape: SegmentShape,
        *,
        first: bool,
        shows_states: bool = True,
        shared: Path | None = None,
        translator: Callable[[States], States] | None = None,
    ) -> None:
        self._last = f"l_out-{shape.layers - 1}".encode()
        self._states = np.zeros((CHUNK, shape.width), np.float32)
        self._address = self._states.ctypes.data
        self._bytes = 0
        """The bytes of states that the current step still has to deliver."""
        self._wanted: list[slice] = []
        """The rows of the current step's states for which the exit is requested."""
        self.shows_states = shows_states
        self._translator = translator
        self._reads_states = shows_states or translator is not None
        self._callback = c.ggml_backend_sched_eval_callback(self._on_node())
        on_node = self._callback if self._reads_states else None
        self._context = LlamaContext(replace(config, kv_unified=True), on_node, shared)
        try:
            _check_shape(config.path, self._context.model, shape)
        except ConfigError:
            self._context.free()
            raise
        self.context_length = self._context.length
        self.vocab_size = shape.vocab_size
        self.held = [0] * config.sequences
        """How many positions each sequence's KV holds."""
        self._batch = Batch(CHUNK, 0 if first else shape.width)

    @property
    def vocabulary(self) -> LlamaVocabulary:
        return LlamaVocabulary(self._context.model)

    def free(self) -> None:
        self._context.free()

    def forget(self, sequence: int) -> None:
        """Removes all positions of `sequence` from the KV."""
        self._context.cut(sequence, 0)
        self.held[sequence] = 0

    def share(self, sequence: int, source: int, length: int) -> None:
        """Makes `sequence` hold the first `length` positions of another one, or none if that holds fewer.

        They share the KV cells.
        """
        self.forget(sequence)
        if 0 < length <= self.held[source]:
            c.llama_memory_seq_cp(self._context.memory, source, sequence, 0, length)
            self.held[sequence] = length

    def take_out(self, sequence: int) -> SegmentKV:
        """The KV of `sequence`, which then holds none: every step reads the cells of all sequences."""
        context, held = self._context.pointer, self.held[sequence]
        data = np.empty(c.llama_state_seq_get_size(context, sequence) if held else 0, np.uint8)
        size = c.llama_state_seq_get_data(context, pointer(data, ctypes.c_uint8), len(data), sequence) if held else 0
        self.forget(sequence)
        return SegmentKV(held, data[:size])

    def put_in(self, sequence: int, kv: SegmentKV, length: int) -> None:
        """Makes `sequence` hold the first `length` positions of what was taken out of any, or none if it cannot."""
        self.forget(sequence)
        if not 0 < length <= kv.held:
            return
        data = pointer(kv.data, ctypes.c_uint8)
        read = c.llama_state_seq_set_data(self._context.pointer, data, len(kv.data), sequence)
        self.held[sequence] = length
        if read != len(kv.data) or not self._context.cut(sequence, length):
            self.forget(sequence)

    def abort(self, wanted: bool) -> None:
        """Ends the current step, and every later one until `wanted` is False again; from any thread."""
        self._context.abort(wanted)

    def decode(self, feeds: Sequence[Feed]) -> Step | None:
        """Appends up to CHUNK inputs in one step.

        If no feed requests the exit, its norm and head are not computed; if one does and the segment returns states,
        they are computed for all inputs. Returns None if `abort` ended the step: no sequence has changed. After an
        EngineError the sequences of `feeds` hold nothing.
        """
        # Before the last layer's MLP llama.cpp drops the rows without requested logits. To get the states of all
        # inputs, request the logits of all.
        show = self.shows_states
        batch = self._batch.fill(
            BatchEntry(at, self.held[at], inputs, len(inputs) if show else rows) for at, inputs, rows in feeds
        )
        count: int = batch.n_tokens
        outputs = count if show else sum(feed.rows for feed in feeds)
        self._bytes = self._states[:outputs].nbytes if self._reads_states else 0
        self._wanted = _last_rows(feeds, of_all=show)
        if not self._compute(batch, feeds):
            return None
        for at, inputs, _ in feeds:
            self.held[at] += len(inputs)
        return Step(self._states[:count] if show else None, self._logits(feeds, count))

    def _compute(self, batch: c.llama_batch, feeds: Sequence[Feed]) -> bool:
        try:
            done = self._context.decode(batch)
            if done and self._bytes:
                raise EngineError(f"llama.cpp did not deliver the states after {self._last.decode()}")
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
        return self._context.logits(count, self.vocab_size)[np.r_[tuple(self._wanted)]]

    def _on_node(self) -> Callable[[int, bool, int | None], bool]:
        """The callback that copies the last layer's states, and replaces those that the exit reads by translated ones.

        llama.cpp calls it before each node (`ask`: is its output needed?) and after each needed one (go on?).
        """
        name_of, last = _ggml.ggml_get_name, self._last  # called about 40 times for each layer of a step

        def on_node(node: int, ask: bool, _: int | None) -> bool:
            if ask:
                return name_of(node) == last  # type: ignore[no-any-return]
            _ggml.ggml_backend_tensor_get(node, self._address, 0, self._bytes)
            self._bytes = 0
            if self._translator:
                for rows in self._wanted:
                    translated = self._translator(self._states[rows])
                    at = rows.start * self._states.strides[0]
                    _ggml.ggml_backend_tensor_set(node, translated.ctypes.data, at, translated.nbytes)
            return bool(self._wanted)

        return on_node


def _last_rows(feeds: Sequence[Feed], of_all: bool) -> list[slice]:
    """The rows of each feed's last `rows` inputs among the rows of all inputs, or else among those of these only."""
    ends = np.cumsum([len(feed.inputs) if of_all else feed.rows for feed in feeds])
    return [slice(int(end) - feed.rows, int(end)) for end, feed in zip(ends, feeds, strict=True) if feed.rows]


def _check_shape(path: str, model: object, expected: SegmentShape) -> None:
    actual = SegmentShape(
        c.llama_model_n_layer(model),
        c.llama_model_n_embd(model),
        c.llama_vocab_n_tokens(c.llama_model_get_vocab(model)),
    )
    if actual != expected:
        has, says = (
            f"{shape.layers} layers, {shape.width} numbers per state, {shape.vocab_size} tokens"
            for shape in (actual, expected)
        )
        raise ConfigError(f"segment {path}: has {has}; its manifest says {says}")
