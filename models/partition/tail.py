"""Writes the last layers of a checkpoint as a checkpoint for vLLM, one tensor at a time."""

import json
import math
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from models.partition.checkpoint import Checkpoint
from models.partition.gguf_export import Step
from models.partition.model_config import SLIDING

SHARD = 1 << 29
"""Values per file of the tail, roughly; so many are in memory together."""
TOKENIZER_FILES = [
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
]


def write_tail(checkpoint: Checkpoint, first: int, folder: Path, done: Step) -> None:
    """Writes the layers from `first` on as a checkpoint; `done` is called after each tensor."""
    folder.mkdir()
    layers = range(first, checkpoint.layers)
    config = json.loads((checkpoint.folder / "config.json").read_text()) | {"num_hidden_layers": len(layers)}
    if kinds := config.get("layer_types") or (SLIDING in checkpoint.config.kinds and checkpoint.config.kinds):
        config["layer_types"] = kinds[first:]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    shards = tail_shards(checkpoint, layers)
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        places = {tail_name(name, first): file for names, file in zip(shards, files, strict=True) for name in names}
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for names, file in zip(shards, files, strict=True):
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensors[tail_name(name, first)] = checkpoint.tensor(name)
            done()
        save_file(tensors, folder / file, {"format": "pt"})


def tail_shards(checkpoint: Checkpoint, layers: range) -> list[list[str]]:
    """The names of the tail's tensors by file; a file is full when it has SHARD values."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in checkpoint.names(layers):
        if size >= SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += math.prod(checkpoint.shape(name))
    return shards


def tail_name(name: str, first: int) -> str:
    """A tensor's name in the tail."""
    if not name.startswith("model.layers."):
        return name
    model, layers, layer, rest = name.split(".", 3)
    return f"{model}.{layers}.{int(layer) - first}.{rest}"
