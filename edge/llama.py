"""llama.cpp through its low-level C interface: model, context, and what each sequence's KV holds. Knows no threads.

Only this file imports llama_cpp. One context serves many sequences; logits are read where llama.cpp leaves them.
"""

import ctypes
import logging
import os
from collections import abc
from typing import Any, Protocol

import llama_cpp as c
import numpy as np
import xxhash
from numpy.typing import NDArray

from common.errors import EngineError, StartError
from edge.sampling import Logits

CHUNK = 256
"""Tokens decoded in one step at most: what a waiting sequence waits for."""

SAMPLE = 65536
"""Bytes of the model file read at each of some 256 places to recognise it."""

logger = logging.getLogger(__name__)


class Llama:
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
        self.fingerprint: str = _fingerprint(path, options)
        """Names the weights and every setting that decides what a KV cell holds and how it is laid out."""
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

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes `target` hold the first `length` tokens of `source` and nothing else; shares them, copies nothing."""
        if source == target:
            self.rewind(target, length)
            return
        self.rewind(target, 0)
        c.llama_memory_seq_cp(self._memory, source, target, 0, length)
        self.held[target] = self.held[source][:length]

    def snapshot(self, sequence: int) -> bytes:
        """The KV of all that `sequence` holds, for `load_snapshot` in a context of the same `fingerprint`."""
        room = c.llama_state_seq_get_size(self._context, sequence)
        buffer = np.empty(room, np.uint8)
        size = c.llama_state_seq_get_data(self._context, _pointer(buffer, ctypes.c_uint8), room, sequence)
        return buffer[:size].tobytes()

    def load_snapshot(self, sequence: int, data: bytes, token_ids: list[int]) -> bool:
        """Makes `sequence` hold `token_ids` from their `snapshot`; False, and it holds nothing, if that fails.

        llama.cpp believes what it reads: `data` must be known to be unchanged before it comes here.
        """
        self.rewind(sequence, 0)
        source = np.frombuffer(data, np.uint8)
        read = c.llama_state_seq_set_data(self._context, _pointer(source, ctypes.c_uint8), len(data), sequence)
        ends = c.llama_memory_seq_pos_min(self._memory, sequence), c.llama_memory_seq_pos_max(self._memory, sequence)
        self.held[sequence] = list(token_ids)
        if read != len(data) or ends != (0, len(token_ids) - 1):
            self.rewind(sequence, 0)
            return False
        return True

    def keep(self, sequence: int, token_ids: list[int]) -> int:
        """Makes `sequence` hold the longest beginning of `token_ids` that any sequence holds; returns its length."""
        lengths = [common_prefix(held, token_ids) for held in self.held]
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


class PrefixStore(Protocol):
    """Where the KV of tokens decoded before may be found again; called in the engine's thread, but for `stats`."""

    def restore(self, llama: Llama, sequence: int, token_ids: abc.Sequence[int]) -> int:
        """Brings the longest known beginning of `token_ids` into `sequence`; returns how many tokens it now holds.

        Called before a prefill, once per lease. What `sequence` held may go; it holds nothing else afterwards.
        """
        ...

    def release(self, llama: Llama, sequence: int) -> None:
        """The lease on `sequence` ended: what it holds may be kept for others."""
        ...

    def evicted(self, llama: Llama, sequence: int) -> None:
        """Another prompt is about to overwrite what `sequence` holds: the last moment to take a snapshot."""
        ...

    def close(self) -> None:
        """The engine stops; no call follows."""
        ...

    def stats(self) -> dict[str, int]:
        """Counts and sizes by name; called from any thread."""
        ...


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


def common_prefix(left: list[int], right: list[int]) -> int:
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


def _check_file(path: str) -> None:
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise StartError(f"model file {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise StartError(f"model file {path}: not a GGUF file")


def _fingerprint(path: str, options: Any) -> str:
    settings = f"{c.__version__} {options.type_k} {options.type_v} {options.flash_attn_type}"
    digest = xxhash.xxh3_128(settings.encode())
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(size.to_bytes(8, "little"))
        # Samples: to read gigabytes at each start would cost more than any cache saves.
        for start in range(0, size, max(SAMPLE, size // 256)):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


@c.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: Any) -> None:
    """llama.cpp's own talk: errors are logged, the rest is dropped."""
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        logger.error("%s", text.decode(errors="replace").strip())
