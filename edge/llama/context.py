"""Loads a GGUF model into llama.cpp with one context for many sequences; decodes batches and returns logits."""

import ctypes
import logging
import os
from pathlib import Path
from typing import Any

import llama_cpp as c
import numpy as np
import xxhash

from common.config_edge import EdgeModelConfig
from common.errors import EngineError, StartError
from edge.llama.sampling import Logits
from edge.llama.threads import step_threads

CHUNK = 256
"""The most tokens of one step; a new request waits for the end of a step."""
SAMPLE = 65536
"""Bytes read at each of about 256 places of a model file, for its fingerprint."""
KV_TYPES = {"f32": c.GGML_TYPE_F32, "f16": c.GGML_TYPE_F16, "q8_0": c.GGML_TYPE_Q8_0}
BF16 = 30
"""GGML_TYPE_BF16; the binding has no name for it."""
ABORTED = 2
"""What llama_decode returns when the abort callback ended it."""
ABORT_MESSAGES = (b"failed with error 1", b"compute status: 1", b"ret = 2")
"""The ends of the error lines that llama.cpp logs when a step is aborted."""

logger = logging.getLogger(__name__)


class LlamaContext:
    """Model and context of one GGUF file, `config.path`; used in one thread, except for `abort`.

    `context_length` is cut to what the model was trained for. `on_node` is a ggml_backend_sched_eval_callback, called
    for each node of a step's graph; it must outlive this object. `shared`: a second file with more of the model's
    tensors, of which all models that are loaded with it share one copy. `embeds`: a step of up to `context_length`
    tokens gives the vector of each text, and no logits. Raises StartError if it cannot be loaded.
    """

    def __init__(
        self, config: EdgeModelConfig, on_node: Any = None, shared: Path | None = None, embeds: bool = False
    ) -> None:
        path, sequences = config.path, config.sequences
        _check_file(path)
        c.llama_backend_init()
        c.llama_log_set(_log, ctypes.c_void_p(None))
        self.model = _load([path, *([str(shared)] if shared else [])], config.gpu_layers)
        self.length = _within_training(config.context_length, c.llama_model_n_ctx_train(self.model), path)
        options = c.llama_context_default_params()
        options.n_ctx = self.length * sequences
        options.n_batch = options.n_ubatch = CHUNK
        options.n_seq_max = sequences
        options.kv_unified = config.kv_unified
        options.swa_full = True  # see WindowRollback
        _set_attention(options, config)
        self.threads = step_threads(config)
        options.n_threads = options.n_threads_batch = self.threads.drawing
        self._abort = ctypes.create_string_buffer(2)
        # llama.cpp calls it between operations and goes on while it returns 0. C's strlen of "" is 0, of "x" is 1; a
        # Python function would take the interpreter's lock each time.
        options.abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, c.ggml_abort_callback)
        options.abort_callback_data = ctypes.addressof(self._abort)
        if embeds:
            # All tokens of a text belong into one part of a step, over which llama.cpp pools.
            options.n_ctx = options.n_batch = options.n_ubatch = self.length
            options.embeddings, options.pooling_type = True, _pooling(self.model)
        if on_node is not None:
            options.cb_eval = ctypes.cast(on_node, c.ggml_backend_sched_eval_callback)
        self.pointer = c.llama_init_from_model(self.model, options)
        if not self.pointer:
            c.llama_model_free(self.model)
            raise StartError(f"model file {path}: no memory for {sequences} contexts of {self.length} tokens")
        self.memory = c.llama_get_memory(self.pointer)
        self.fingerprint: str = _fingerprint(path, options)
        """Identifies the weights and all settings that determine the content and layout of the KV."""

    def free(self) -> None:
        c.llama_free(self.pointer)
        c.llama_model_free(self.model)

    def decode(self, batch: c.llama_batch) -> bool:
        """Computes one step; False if `abort` ended it, and then the new KV cells of its sequences are invalid.

        Raises EngineError if llama.cpp cannot decode the batch.
        """
        threads = self.threads.of_step(batch.n_tokens)
        c.llama_set_n_threads(self.pointer, threads, threads)  # of itself it takes the second one from 2 tokens on
        code = c.llama_decode(self.pointer, batch)
        if code not in (0, ABORTED):
            raise EngineError(f"llama.cpp could not decode {batch.n_tokens} tokens (code {code})")
        return bool(code == 0)

    def abort(self, wanted: bool) -> None:
        """Ends the current step, and every later one until `wanted` is False again; from any thread."""
        self._abort.value = b"x" if wanted else b""

    def cut(self, sequence: int, length: int) -> bool:
        """Removes all but the first `length` tokens from the KV; False if llama.cpp could only remove all of them."""
        if c.llama_memory_seq_rm(self.memory, sequence, length, -1):
            return True
        c.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        return False

    def logits(self, rows: int, size: int) -> Logits:
        """The last step's logits, [rows, size], in llama.cpp's own memory: valid until the next step."""
        if not rows:
            return np.empty((0, size), np.float32)
        first = ctypes.addressof(c.llama_get_logits(self.pointer).contents)
        memory: Any = (ctypes.c_float * (rows * size)).from_address(first)
        return np.frombuffer(memory, np.float32).reshape(rows, size)


def _load(paths: list[str], gpu_layers: int) -> Any:
    settings = c.llama_model_default_params()
    settings.n_gpu_layers = gpu_layers
    if len(paths) == 1:  # llama.cpp then finds further files by their names
        model = c.llama_model_load_from_file(paths[0].encode(), settings)
    else:
        names = (ctypes.c_char_p * len(paths))(*(path.encode() for path in paths))
        model = c.llama_model_load_from_splits(names, len(paths), settings)
    if not model:
        raise StartError(f"model file {paths[0]}: llama.cpp cannot load it")
    return model


def _pooling(model: Any) -> int:
    """The file's own, or the mean."""
    name, value = ctypes.create_string_buffer(64), ctypes.create_string_buffer(16)
    c.llama_model_meta_val_str(model, b"general.architecture", name, 64)
    found = c.llama_model_meta_val_str(model, name.value + b".pooling_type", value, 16) > 0
    kind = int(value.value) if found and value.value.isdigit() else c.LLAMA_POOLING_TYPE_NONE
    return int(kind if kind != c.LLAMA_POOLING_TYPE_NONE else c.LLAMA_POOLING_TYPE_MEAN)


def _set_attention(options: Any, config: EdgeModelConfig) -> None:
    """Sets the types of keys and values, and whether flash attention reads them."""
    on_cpu = config.gpu_layers == 0
    options.type_k = options.type_v = KV_TYPES[config.kv_type]
    flash = config.flash_attention
    if flash == "auto":
        # On a CPU, flash attention is slower over long texts; but llama.cpp quantizes KV only with it.
        flash = not on_cpu or config.kv_type == "q8_0"
    if flash and on_cpu and config.kv_type == "f16":
        # On a CPU, flash attention sums f16 values in half precision (f32 values too, converted to f16), and the draws
        # would depend on the portions in which a prompt is decoded. It sums values of all other types in float32.
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
        # Samples only: reading gigabytes at each start would cost more than the cache saves.
        for start in range(0, size, max(SAMPLE, size // 256)):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


@c.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: Any) -> None:
    """Logs llama.cpp's errors, except those of an intended abort; drops its other messages."""
    if level == 4 and not text.strip().endswith(ABORT_MESSAGES):  # GGML_LOG_LEVEL_ERROR
        logger.error("%s", text.decode(errors="replace").strip())
