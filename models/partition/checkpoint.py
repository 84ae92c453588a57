"""Reads a checkpoint in safetensors files, one tensor at a time; finds it on disk or on the hub."""

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import ConfigError
from common.files.installation import shipped
from common.hardware import choose_dtype, cpu_flags
from common.protocol.split_manifest import file_hash
from models.partition.layer_tensors import layer_tensors
from models.partition.model_config import read_config

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
FILES = [
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*.jinja"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt"),
]
"""The files to download from the hub; a repository may have the same weights in other formats, too."""


class Checkpoint:
    """A checkpoint's folder: its config, and the files of its tensors.

    Raises ConfigError if the architecture is not supported, or a tensor is missing or has a wrong shape.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder / "config.json")
        self._files = _tensor_files(folder)
        self._check_tensors()

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def head(self) -> str:
        """The name of the head's tensor: the embeddings if they are tied."""
        return EMBEDDING if self.config.tie_word_embeddings or HEAD not in self._files else HEAD

    def names(self, layers: range) -> list[str]:
        """The names of these layers' tensors, and of the embeddings, norm and head."""
        return [*dict.fromkeys([EMBEDDING, *(n for i in layers for n in self.layer_names(i)), NORM, self.head])]

    def layer_names(self, layer: int) -> list[str]:
        return [layer_prefix(layer) + name for name in layer_tensors(self.config)]

    def tensor(self, name: str) -> Tensor:
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._files[name], "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    @property
    def fast_dtype(self) -> torch.dtype:
        """The number format that vLLM would take for this model on this CPU."""
        numbers = sum(math.prod(self.shape(name)) for name in self.names(range(self.layers)))
        return torch.bfloat16 if choose_dtype(cpu_flags(), 4 * numbers).value == "bfloat16" else torch.float32

    @property
    def norm(self) -> Tensor:
        """The scale of the norm before the head, [H], in float32."""
        return self.tensor(NORM).float() + self.config.family.norm_offset

    @property
    def weight_files(self) -> list[Path]:
        return sorted(set(self._files.values()))

    def fingerprint(self, first: int) -> str:
        """sha256 of the config, the weights and `first`, the tail's first layer."""
        digest = hashlib.sha256(f"{first}\n".encode())
        for found in (file_hash(self.folder / "config.json"), *self._weight_hashes):
            digest.update(f"{found}\n".encode())
        return digest.hexdigest()

    @property
    def weights_hash(self) -> str:
        """sha256 of the weights' files."""
        return hashlib.sha256("\n".join(self._weight_hashes).encode()).hexdigest()

    @cached_property
    def _weight_hashes(self) -> list[str]:
        """Reads every file once."""
        return [file_hash(path) for path in self.weight_files]

    @property
    def tokenizer(self) -> Path:
        for name in ("tokenizer.json", "tokenizer.model"):
            if (self.folder / name).is_file():
                return self.folder / name
        raise ConfigError(f"{self.folder}: no tokenizer.json and no tokenizer.model")

    def _check_tensors(self) -> None:
        config = self.config
        shapes: dict[str, tuple[int, ...]] = {NORM: (config.hidden_size,)}
        shapes |= dict.fromkeys((EMBEDDING, self.head), (config.vocab_size, config.hidden_size))
        for layer in range(self.layers):
            shapes |= {layer_prefix(layer) + name: each.shape for name, each in layer_tensors(config).items()}
        if missing := [name for name in shapes if name not in self._files]:
            raise ConfigError(f"{self.folder}: tensor {missing[0]} is missing")
        for path in self.weight_files:
            with safe_open(path, "pt") as file:
                for name in shapes.keys() & set(file.keys()):
                    if tuple(found := file.get_slice(name).get_shape()) != shapes[name]:
                        raise ConfigError(f"{path}: tensor {name} is {found}, the config says {list(shapes[name])}")


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."


def find(model: str, files: list[str] = FILES) -> Path:
    """The folder of `model`: a local one, or of a Hugging Face id, whose `files` are downloaded. Raises ConfigError."""
    if (folder := shipped(model)).is_dir():
        return folder
    if folder.exists() or model.count("/") != 1 or model.startswith(("/", ".")):
        raise ConfigError(f"model {model}: no such folder")
    try:
        return Path(snapshot_download(model, allow_patterns=files))
    except GatedRepoError as error:
        raise ConfigError(f"model {model}: accept its licence on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"model {model}: neither a local folder nor a repository on the hub") from error
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConfigError(f"model {model}: no local folder, and the download from the hub failed: {reason}") from error


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Each tensor's file: those of the index, or else the only one."""
    found: dict[str, Path] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: {error}") from error
    return found


def _weight_files(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        yield folder / "model.safetensors"
        return
    try:
        names = set(msgspec.json.decode(index.read_bytes(), type=dict[str, Any])["weight_map"].values())
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{index}: no index of tensors") from error
    for name in sorted(map(str, names)):
        if Path(name).name != name:
            raise ConfigError(f"{index}: {name!r} is no name of a file in the same folder")
        yield folder / name
