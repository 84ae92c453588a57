"""How large a model in Hugging Face form is, read from its files' headers or the hub's, before anything is loaded."""

import json
import math
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import get_safetensors_metadata, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""By the names of `cloud.model.dtype`."""
STORED_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""By the names that safetensors has; all others take one byte or less."""
CONVERTED = ("F64", "F32", "F16", "BF16")
"""Weights that become the engine's dtype; vLLM keeps quantized ones as they are."""
CONFIG = "config.json"
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error)
"""What reading a file of another form raises."""


class ModelSize(NamedTuple):
    """What a model's files say of its size; None: they do not."""

    parameters: Mapping[str, int] | None
    """Numbers of each stored type."""
    kv_numbers: int | None
    """Numbers in the KV of one token, over all layers."""
    keeps_all: bool
    """Whether every layer keeps the KV of all tokens; else `kv_numbers` is an upper bound."""
    trained: int | None
    """Tokens of context that the model was trained for."""

    def weight_bytes(self, dtype: str) -> int | None:
        """The weights' bytes in the engine's memory."""
        if self.parameters is None:
            return None
        return sum(
            count * (FLOAT_BYTES[dtype] if kind in CONVERTED else STORED_BYTES.get(kind, 1))
            for kind, count in self.parameters.items()
        )

    def kv_bytes(self, dtype: str) -> int | None:
        """Bytes of the KV of one token."""
        return None if self.kv_numbers is None else self.kv_numbers * FLOAT_BYTES[dtype]


def model_size(model: str) -> ModelSize:
    """Of a folder or hub id, whose config.json is there; blocks while it asks the hub for what is not cached."""
    folder = Path(model)
    if not folder.is_dir():
        cached = try_to_load_from_cache(model, CONFIG)
        folder = Path(cached).parent if isinstance(cached, str) else folder
    config = _config(folder)
    skipped = ("lm_head.weight",) if config.get("tie_word_embeddings") else ()  # a copy that vLLM does not load
    parameters = _stored(folder, skipped) or (None if Path(model).is_dir() else _on_the_hub(model))
    trained = _positive(config.get("max_position_embeddings"))
    return ModelSize(parameters, kv_numbers(config), _keeps_all(config), trained)


def _config(folder: Path) -> dict[str, Any]:
    """The config.json of the model, or of the text part of one that also sees or hears; empty if it cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return {}
    whole = config if isinstance(config, dict) else {}
    part = whole.get("text_config")
    return part if isinstance(part, dict) else whole


def kv_numbers(config: Mapping[str, Any]) -> int | None:
    """Numbers in one token's keys and values, from a model's config.json; None if it does not say."""
    layers, heads = _positive(config.get("num_hidden_layers")), _positive(config.get("num_attention_heads"))
    if latent := _positive(config.get("kv_lora_rank")):  # keys and values are one compressed vector
        return layers and layers * (latent + (_positive(config.get("qk_rope_head_dim")) or 0))
    width, groups = _positive(config.get("hidden_size")), _positive(config.get("num_key_value_heads")) or heads
    head = _positive(config.get("head_dim")) or (width // heads if width and heads else None)
    return 2 * layers * groups * head if layers and groups and head else None


def _keeps_all(config: Mapping[str, Any]) -> bool:
    kinds = set(config.get("layer_types") or ["full_attention"])
    windows = bool(config.get("sliding_window")) and config.get("use_sliding_window", True)
    recurrent = any(word in key for key in config for word in ("mamba", "ssm", "linear_", "conv_"))
    return kinds == {"full_attention"} and not windows and not recurrent


def damage(folder: Path) -> str | None:
    """Which safetensors file of a folder is not whole, and why; None: all are, or it has none."""
    for file in _weight_files(folder):
        if not file.exists():
            return f"{file.name}, which the index names, is missing"
        try:
            listed, tensors = _header(file)
            listed += max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        except UNREADABLE:
            return f"{file.name} has no list of its tensors"
        if listed != (size := file.stat().st_size):
            return f"{file.name} has {size:,} bytes instead of {listed:,}: was its download interrupted?"
    return None


def _stored(folder: Path, skipped: Collection[str]) -> Mapping[str, int] | None:
    """Numbers by type in a folder's safetensors files; None if it has none, or not all of them."""
    counts = Counter[str]()
    try:
        for file in _weight_files(folder):
            for name, tensor in _header(file)[1].items():
                counts[tensor["dtype"]] += 0 if name in skipped else math.prod(tensor["shape"])
    except UNREADABLE:
        return None
    return counts or None


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that vLLM loads: those of the index, else all.

    Some repositories hold the same weights a second time, as one consolidated file, which vLLM does not load.
    """
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    except UNREADABLE:
        files = sorted(folder.glob("*.safetensors"))
        return [file for file in files if not file.name.startswith("consolidated")]


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where a safetensors file's data begin, and the tensors that it lists."""
    with file.open("rb") as data:
        (length,) = struct.unpack("<Q", data.read(8))
        header = json.loads(data.read(min(length, file.stat().st_size)))
    if not isinstance(header, dict):
        raise ValueError("not a list of tensors")
    return 8 + length, {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def _on_the_hub(model: str) -> Mapping[str, int] | None:
    try:
        return {str(kind): count for kind, count in get_safetensors_metadata(model).parameter_count.items()}
    except (HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError, OSError, ValueError):
        return None


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None
