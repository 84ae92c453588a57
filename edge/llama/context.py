"""A model that llama.cpp has loaded, and one context of it for many sequences. Knows neither tokens nor threads."""

import ctypes
import logging
import os
from typing import Any

import llama_cpp as c
import numpy as np
import xxhash

from common.errors import EngineError, StartError
from edge.llama.sampling import Logits

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


class LlamaContext:
    """Model and context; belongs to one thread, except for `abort`. Raises StartError in one line if not to be had.

    `on_node` is a ggml_backend_sched_eval_callback, called for each node of a step's graph; it must outlive this.
    """

    def __init__(
        self,
        path: str,
        context_length: int,
        gpu_layers: int,
        threads: int,
        sequences: int,
        kv_type: str,
        flash_attention: bool | None,
        kv_unified: bool,
        on_node: Any = None,
    ) -> None:
        _check_file(path)
        c.llama_backend_init()
        c.llama_log_set(_log, ctypes.c_void_p(None))
        self.model = _load(path, gpu_layers)
        self.length = _within_training(context_length, c.llama_model_n_ctx_train(self.model), path)
        options = c.llama_context_default_params()
        options.n_ctx = self.length * sequences
        options.n_batch = options.n_ubatch = CHUNK
        options.n_seq_max = sequences
        options.kv_unified = kv_unified
        _set_attention(options, kv_type, flash_attention, on_cpu=gpu_layers == 0)
        options.n_threads = options.n_threads_batch = threads
        self._abort = ctypes.create_string_buffer(2)
        # llama.cpp asks between any two operations whether to go on. C's strlen answers, "" is false and "x" is true:
        # a Python function would take the interpreter's lock each time.
        options.abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, c.ggml_abort_callback)
        options.abort_callback_data = ctypes.addressof(self._abort)
        if on_node is not None:
            options.cb_eval = ctypes.cast(on_node, c.ggml_backend_sched_eval_callback)
        self.pointer = c.llama_init_from_model(self.model, options)
        if not self.pointer:
            c.llama_model_free(self.model)
            raise StartError(f"model file {path}: no memory for {sequences} contexts of {self.length} tokens")
        self.memory = c.llama_get_memory(self.pointer)
        self.fingerprint: str = _fingerprint(path, options)
        """Names the weights and every setting that decides what a KV cell holds and how it is laid out."""

    def free(self) -> None:
        c.llama_free(self.pointer)
        c.llama_model_free(self.model)

    def decode(self, batch: c.llama_batch) -> bool:
        """Computes one step; False if `abort` ended it. What the KV of its sequences holds then is not to be used."""
        code = c.llama_decode(self.pointer, batch)
        if code not in (0, ABORTED):
            raise EngineError(f"llama.cpp could not decode {batch.n_tokens} tokens (code {code})")
        return bool(code == 0)

    def abort(self, wanted: bool) -> None:
        """Makes the step under way, and any other until this is taken back, end at once; from any thread."""
        self._abort.value = b"x" if wanted else b""

    def cut(self, sequence: int, length: int) -> bool:
        """Forgets all but the first `length` tokens; False, and all are forgotten, if only all can be."""
        if c.llama_memory_seq_rm(self.memory, sequence, length, -1):
            return True
        c.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        return False

    def logits(self, rows: int, size: int) -> Logits:
        """The last step's rows, [rows, size], where llama.cpp has them: valid until the next step."""
        if not rows:
            return np.empty((0, size), np.float32)
        first = ctypes.addressof(c.llama_get_logits(self.pointer).contents)
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
