"""What a model needs in memory, estimated from its file's metadata, and whether the machine has it."""

from collections.abc import Callable
from typing import NamedTuple

from common.config_edge import EdgeModelConfig
from common.hardware import Memory, Setting, gib

ELEMENT_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
"""Bytes for a number of each `kv_type`."""
OTHER_KV = ("attention.kv_lora_rank", "ssm.state_size", "shortconv.l_cache")
"""Keys of architectures that keep something else than keys and values of every token in every layer.

Those with a sliding window are not among them: `LlamaContext` has llama.cpp keep all (`swa_full`).
"""

Meta = Callable[[str], object]
"""The metadata of a GGUF file by key; None where it has none."""


class KVShape(NamedTuple):
    """A model's KV cache: numbers for each token, over all layers."""

    numbers: int
    trained: int
    """Tokens of context that the model was trained for."""

    def bytes(self, config: EdgeModelConfig) -> int:
        """What llama.cpp allocates for all sequences of `config`, at once when it loads the model."""
        tokens = config.sequences * min(config.context_length, self.trained)
        return int(tokens * self.numbers * ELEMENT_BYTES[config.kv_type])

    def setting(self, config: EdgeModelConfig) -> Setting:
        length = min(config.context_length, self.trained)
        return Setting(self.bytes(config), f"{config.sequences} sequences of {length} tokens in {config.kv_type}")


def kv_shape(meta: Meta) -> KVShape | None:
    """From a model's metadata; None for a model that does not keep all keys and values."""
    name = _text(meta("general.architecture"))

    def number(key: str) -> int | None:
        return _number(meta(f"{name}.{key}"))

    layers, width, heads = number("block_count"), number("embedding_length"), number("attention.head_count")
    kv_heads = number("attention.head_count_kv") if meta(f"{name}.attention.head_count_kv") is not None else heads
    if (
        not layers
        or not width
        or not heads
        or not kv_heads
        or any(meta(f"{name}.{key}") is not None for key in OTHER_KV)
    ):
        return None
    head = width // heads
    per_head = (number("attention.key_length") or head) + (number("attention.value_length") or head)
    return KVShape(layers * kv_heads * per_head, number("context_length") or 1 << 31)


def refusal(weights: int, shape: KVShape | None, config: EdgeModelConfig, memory: Memory | None) -> str | None:
    """Why a model on the CPU cannot work here: `weights` bytes of files, and its KV; None if it may.

    The KV is allocated. Weights need not be free: llama.cpp maps the file, and the system gives up other files' caches
    for it. But they must fit the machine at all, or every token would read them from the disk.
    """
    if memory is None or config.gpu_layers:
        return None
    kv = shape.bytes(config) if shape else 0
    if weights + kv <= memory.total and kv <= memory.available + memory.swap:
        return None
    parts = f"weights {gib(weights)}, KV of {config.sequences} sequences of {config.context_length} tokens {gib(kv)}"
    return f"needs {gib(weights + kv)} of memory ({parts}); {memory}"


def _number(value: object) -> int | None:
    """Metadata comes as numbers from the file's header, as text from llama.cpp; lists are no number in either."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) else None


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
