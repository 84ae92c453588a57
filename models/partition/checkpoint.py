"""Reads a Llama or Qwen2 checkpoint in safetensors files, one tensor at a time; finds it on disk or on the hub."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import ConfigError
from common.protocol.split_manifest import file_hash

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""The supported architectures, and llama.cpp's names of them."""
ROPES = {"llama": ("default", "linear", "yarn", "llama3"), "qwen2": ("default", "linear", "yarn")}
"""The types of rotary scaling that llama.cpp supports for each architecture."""
FILES = [
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*.jinja"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt"),
]
"""The files to download from the hub; a repository may have the same weights in other formats, too."""


class ModelConfig(msgspec.Struct):
    """The fields of a config.json that affect the computation."""

    architectures: list[str]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str = "silu"
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None

    @property
    def architecture(self) -> str:
        return ARCHITECTURES[self.architectures[0]]

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> dict[str, Any]:
        """`rope_theta`, `rope_type` and the type's parameters, from whichever keys the config has."""
        found = {"rope_theta": self.rope_theta} | (self.rope_scaling or {}) | (self.rope_parameters or {})
        return found | {"rope_type": found.get("rope_type", found.get("type", "default"))}

    def layer_tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """The names and shapes of one layer's tensors."""
        queries, keys = self.num_attention_heads * self.head_size, self.kv_heads * self.head_size
        attention = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        shapes: dict[str, tuple[int, ...]] = {
            f"self_attn.{n}.weight": (s, self.hidden_size) for n, s in attention.items()
        }
        shapes["self_attn.o_proj.weight"] = (self.hidden_size, queries)
        mlp = {"gate_proj": self.intermediate_size, "up_proj": self.intermediate_size}
        shapes |= {f"mlp.{n}.weight": (s, self.hidden_size) for n, s in mlp.items()}
        shapes["mlp.down_proj.weight"] = (self.hidden_size, self.intermediate_size)
        if self.attention_bias or self.architecture == "qwen2":
            shapes |= {f"self_attn.{name}.bias": (size,) for name, size in attention.items()}
        if self.attention_bias:
            shapes["self_attn.o_proj.bias"] = (self.hidden_size,)
        if self.mlp_bias:
            shapes |= {f"mlp.{n}.bias": (s,) for n, s in (mlp | {"down_proj": self.hidden_size}).items()}
        shapes |= {f"{norm}.weight": (self.hidden_size,) for norm in ("input_layernorm", "post_attention_layernorm")}
        return {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}


class Checkpoint:
    """A checkpoint's folder: its config, and the files of its tensors.

    Raises ConfigError if the architecture is not supported, or a tensor is missing or has a wrong shape.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _read_config(folder / "config.json")
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
        return [
            *dict.fromkeys([EMBEDDING, *(n for i in layers for n in self.config.layer_tensors(i)), NORM, self.head])
        ]

    def tensor(self, name: str) -> Tensor:
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._files[name], "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    @property
    def weight_files(self) -> list[Path]:
        return sorted(set(self._files.values()))

    def fingerprint(self, first: int) -> str:
        """sha256 of the config, the weights and `first`, the tail's first layer; reads every file once."""
        digest = hashlib.sha256(f"{first}\n".encode())
        for path in (self.folder / "config.json", *self.weight_files):
            digest.update(f"{file_hash(path)}\n".encode())
        return digest.hexdigest()

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
            shapes |= config.layer_tensors(layer)
        if missing := [name for name in shapes if name not in self._files]:
            raise ConfigError(f"{self.folder}: tensor {missing[0]} is missing")
        for path in self.weight_files:
            with safe_open(path, "pt") as file:
                for name in shapes.keys() & set(file.keys()):
                    if tuple(found := file.get_slice(name).get_shape()) != shapes[name]:
                        raise ConfigError(f"{path}: tensor {name} is {found}, the config says {list(shapes[name])}")


def find(model: str) -> Path:
    """The folder of `model`: a local folder, or a Hugging Face id, which is downloaded once. Raises ConfigError."""
    if (folder := Path(model)).is_dir():
        return folder
    if folder.exists() or model.count("/") != 1 or model.startswith(("/", ".")):
        raise ConfigError(f"model {model}: no such folder")
    try:
        return Path(snapshot_download(model, allow_patterns=FILES))
    except GatedRepoError as error:
        raise ConfigError(f"model {model}: accept its licence on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"model {model}: neither a local folder nor a repository on the hub") from error
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConfigError(f"model {model}: no local folder, and the download from the hub failed: {reason}") from error


def _read_config(path: Path) -> ModelConfig:
    try:
        data = path.read_bytes()
        named = msgspec.json.decode(data, type=dict[str, Any]).get("architectures")
        if not isinstance(named, list) or len(named) != 1 or named[0] not in ARCHITECTURES:
            wanted = " or ".join(ARCHITECTURES)
            raise ConfigError(f"{path}: architecture {named}; only {wanted} can be cut")
        config = msgspec.json.decode(data, type=ModelConfig, strict=False)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if fault := _fault(config):
        raise ConfigError(f"{path}: {fault}")
    return config


def _fault(config: ModelConfig) -> str | None:
    """What in a config the engines cannot compute; None: nothing."""
    if config.rope["rope_type"] not in ROPES[config.architecture]:
        return f"rotary positions of type {config.rope['rope_type']!r} are not supported"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act!r} is not supported"
    if config.quantization_config:
        return "its weights are quantized already; use the original checkpoint"
    if config.use_sliding_window:
        return "llama.cpp has no sliding window for this architecture"
    if config.architecture == "qwen2" and config.head_size * config.num_attention_heads != config.hidden_size:
        return "llama.cpp requires that the heads together have the hidden size"
    return None


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
