"""llama.cpp's model and context through its C interface, and what each sequence's KV holds. Knows no threads.

One context serves many sequences, one call decodes tokens of all of them, and logits are read where llama.cpp leaves
them. Only files named edge/llama*.py import llama_cpp.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from typing import Any

import llama_cpp as c
import numpy as np
import xxhash

from common.errors import EngineError, StartError
from edge.llama_batch import Batch, Piece, pointer
from edge.llama_vocab import Vocabulary
from edge.sampling import Logits

CHUNK = 256
"""Tokens decoded in one step at most: what a waiting request waits for."""
SAMPLE = 65536
"""Bytes of the model file read at each of some 256 places to recognise it."""
KV_TYPES = {"f32": c.GGML_TYPE_F32, "f16": c.GGML_TYPE_F16, "q8_0": c.GGML_TYPE_Q8_0}
BF16 = 30
"""GGML_TYPE_BF16, which the binding has no name for."""
ABORTED = 2
"""What llama_decode returns when the abort callback ended it."""
ABORT_TALK = (b"failed with error 1", b"compute status: 1", b"ret = 2")
"""How the errors end that llama.cpp logs on its way to that."""

logger = logging.getLogger(__name__)


class Llama:
    """llama.cpp's model and context, and what each sequence of its KV cache holds.

    Belongs to the engine's thread, except for the vocabulary and `abort`. Raises StartError in one line if it cannot
    be loaded. `kv_unified`: sequences share the cells of a common beginning, and attention looks at the cells of all;
    else each has its own, and a beginning is copied. `flash_attention` None: where it keeps draws independent
    of the batch.
    """

    def __init__(
        self,
        path: str,
        context_length: int,
        gpu_layers: int,
        threads: int,
        sequences: int,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        kv_unified: bool = False,
    ) -> None:
        _check_file(path)
        c.llama_backend_init()
        c.llama_log_set(_log, ctypes.c_void_p(None))
        self._model = _load(path, gpu_layers)
        self.context_length = _within_training(context_length, c.llama_model_n_ctx_train(self._model), path)
        self.sequences = sequences
        options = c.llama_context_default_params()
        options.n_ctx = self.context_length * sequences
        options.n_batch = options.n_ubatch = CHUNK
        options.n_seq_max = sequences
        options.kv_unified = self.unified = kv_unified
        _set_attention(options, kv_type, flash_attention, on_cpu=gpu_layers == 0)
        options.n_threads = options.n_threads_batch = threads
        self._abort = ctypes.create_string_buffer(2)
        # llama.cpp asks between any two operations whether to go on. C's strlen answers, "" is false and "x" is true:
        # a Python function would take the interpreter's lock each time.
        options.abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, c.ggml_abort_callback)
        options.abort_callback_data = ctypes.addressof(self._abort)
        self._context = c.llama_init_from_model(self._model, options)
        if not self._context:
            c.llama_model_free(self._model)
            raise StartError(f"model file {path}: no memory for {sequences} contexts of {self.context_length} tokens")
        self._memory = c.llama_get_memory(self._context)
        self.held: list[list[int]] = [[] for _ in range(sequences)]
        """The token ids in each sequence's KV cache, by position."""
        self._copied_to: int | None = None
        """A sequence whose cells llama.cpp only fills when it decodes next."""
        self.vocabulary = Vocabulary(self._model)
        self.fingerprint: str = _fingerprint(path, options)
        """Names the weights and every setting that decides what a KV cell holds and how it is laid out."""
        self._batch = Batch(CHUNK)

    def free(self) -> None:
        c.llama_free(self._context)
        c.llama_model_free(self._model)

    def rewind(self, sequence: int, length: int) -> int:
        """Forgets all but the first `length` tokens; returns how many are left: none if only all can be."""
        if not c.llama_memory_seq_rm(self._memory, sequence, length, -1):
            c.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            length = 0
        del self.held[sequence][length:]
        return len(self.held[sequence])

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes `target` hold the first `length` tokens of `source` and nothing else; shared, if KV is unified."""
        if source == target or not length:
            self.rewind(target, length)
            return
        self.rewind(target, 0)
        if self.unified:
            c.llama_memory_seq_cp(self._memory, source, target, 0, length)
        else:
            c.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            c.llama_memory_seq_rm(self._memory, target, length, -1)
            self._copied_to = target
        self.held[target] = self.held[source][:length]

    def snapshot(self, sequence: int) -> bytes:
        """The KV of all that `sequence` holds, for `load_snapshot` in a context of the same `fingerprint`."""
        self._finish_copies()
        room = c.llama_state_seq_get_size(self._context, sequence)
        buffer = np.empty(room, np.uint8)
        size = c.llama_state_seq_get_data(self._context, pointer(buffer, ctypes.c_uint8), room, sequence)
        return buffer[:size].tobytes()

    def load_snapshot(self, sequence: int, data: bytes, token_ids: list[int]) -> bool:
        """Makes `sequence` hold `token_ids` from their `snapshot`; False, and it holds nothing, if that fails.

        llama.cpp believes what it reads: `data` must be known to be unchanged before it comes here.
        """
        self._finish_copies()
        self.rewind(sequence, 0)
        source = np.frombuffer(data, np.uint8)
        read = c.llama_state_seq_set_data(self._context, pointer(source, ctypes.c_uint8), len(data), sequence)
        ends = c.llama_memory_seq_pos_min(self._memory, sequence), c.llama_memory_seq_pos_max(self._memory, sequence)
        self.held[sequence] = list(token_ids)
        if read != len(data) or ends != (0, len(token_ids) - 1):
            self.rewind(sequence, 0)
            return False
        return True

    def decode(self, pieces: Sequence[Piece]) -> Logits | None:
        """Appends up to CHUNK tokens in one step; returns the rows wanted, [R, V], in the order of `pieces`.

        They are valid until the next decode. None: `abort` ended the step, and every sequence is as it was before.
        After an EngineError the sequences of `pieces` hold nothing.
        """
        batch = self._batch.fill([(piece, len(self.held[piece.sequence])) for piece in pieces])
        code = c.llama_decode(self._context, batch)
        if code in (0, ABORTED):
            self._copied_to = None
        if code:
            for piece in pieces:
                self.rewind(piece.sequence, len(self.held[piece.sequence]) if code == ABORTED else 0)
            if code == ABORTED:
                return None
            raise EngineError(f"llama.cpp could not decode {batch.n_tokens} tokens (code {code})")
        for piece in pieces:
            self.held[piece.sequence] += piece.token_ids
        return self._logits(sum(piece.rows for piece in pieces))

    def abort(self, wanted: bool) -> None:
        """Makes the step under way, and any other until this is taken back, end at once; from any thread."""
        self._abort.value = b"x" if wanted else b""

    def _finish_copies(self) -> None:
        """Makes llama.cpp fill the cells of copies now, before any are read or written past it."""
        if (target := self._copied_to) is not None:
            length = len(self.held[target])
            self.decode([Piece(target, [0], 0)])
            self.rewind(target, length)

    def _logits(self, rows: int) -> Logits:
        size = self.vocabulary.size
        if not rows:
            return np.empty((0, size), np.float32)
        first = ctypes.addressof(c.llama_get_logits(self._context).contents)
        where: Any = (ctypes.c_float * (rows * size)).from_address(first)
        return np.frombuffer(where, np.float32).reshape(rows, size)


def _load(path: str, gpu_layers: int) -> Any:
    settings = c.llama_model_default_params()
    settings.n_gpu_layers = gpu_layers
    model = c.llama_model_load_from_file(path.encode(), settings)
    if not model:
        raise StartError(f"model file {path}: llama.cpp cannot load it")
    return model


def _set_attention(options: Any, kv_type: str, flash: bool | None, on_cpu: bool) -> None:
    """Types of keys and values, and which attention reads them."""
    options.type_k = options.type_v = KV_TYPES[kv_type]
    if flash is None:
        # On a CPU it was the slower one over long texts; llama.cpp quantizes KV only with it.
        flash = not on_cpu or kv_type == "q8_0"
    if flash and on_cpu and kv_type == "f16":
        # Flash attention on a CPU adds up f16 values in half precision, and f32 ones it makes f16 before: in what
        # portions a prompt was read would change what is drawn. Any other values it adds up in float32.
        options.type_v = BF16
    options.flash_attn_type = int(flash)


def _within_training(wanted: int, trained: int, path: str) -> int:
    if wanted > trained:
        logger.warning("context length cut from %d to the %d that %s was trained for", wanted, trained, path)
    return min(wanted, trained)


def _check_file(path: str) -> None:
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise StartError(f"model file {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise StartError(f"model file {path}: not a GGUF file")


def _fingerprint(path: str, options: Any) -> str:
    streams = 1 if options.kv_unified else options.n_seq_max
    settings = f"{c.__version__} {options.type_k} {options.type_v} {options.flash_attn_type} {streams}"
    digest = xxhash.xxh3_128(settings.encode())
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(size.to_bytes(8, "little"))
        # Samples: to read gigabytes at each start would cost more than any cache saves.
        for start in range(0, size, max(SAMPLE, size // 256)):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


@c.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: Any) -> None:
    """llama.cpp's own talk: errors are logged, the rest is dropped; an abort was wanted and is none."""
    if level == 4 and not text.strip().endswith(ABORT_TALK):  # GGML_LOG_LEVEL_ERROR
        logger.error("%s", text.decode(errors="replace").strip())
