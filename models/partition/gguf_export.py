"""Writes layers of a checkpoint as a GGUF model, one tensor at a time."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from models.partition.checkpoint import EMBEDDING, HEAD, NORM, Checkpoint, layer_prefix
from models.partition.layer_tensors import layer_tensors
from models.partition.model_config import SLIDING, ModelConfig

Kind = gguf.GGMLQuantizationType
QUANTIZATIONS = {
    "f32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (Kind.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (Kind.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (Kind.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (Kind.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
"""Types of a file's matrices; norms and biases stay in float32."""
Step = Callable[[], object]


class TensorEntry(NamedTuple):
    """A tensor to write: llama.cpp's name, its shape, and a function that reads its values."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]


def add_shape(writer: gguf.GGUFWriter, config: ModelConfig, layers: range, quantization: str) -> None:
    """Adds the metadata of a model with this config and these of its layers."""
    writer.add_file_type(QUANTIZATIONS[quantization][1])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope(writer, config)
    if SLIDING in (kinds := config.kinds[layers.start : layers.stop]) and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == SLIDING for kind in kinds])
        writer.add_rope_freq_base_swa(config.local_rope_theta)


def _add_rope(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    rope = config.rope
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        trained = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(trained)
        for key, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(key) is not None:
                add(rope[key])


def rope_entries(checkpoint: Checkpoint) -> list[TensorEntry]:
    """Llama 3's rotary scaling, which llama.cpp reads as a tensor of divisors; empty for other types."""
    config = checkpoint.config
    if config.rope["rope_type"] != "llama3":
        return []
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(checkpoint.folder), "cpu")
    plain = config.rope["rope_theta"] ** -(torch.arange(0, config.head_size, 2) / config.head_size)
    divisors = (plain / scaled).float().numpy()
    return [TensorEntry("rope_freqs.weight", divisors.shape, lambda: divisors)]


def model_entries(checkpoint: Checkpoint) -> list[TensorEntry]:
    """All tensors of a model; without a head if that is tied to the embeddings."""
    norm = TensorEntry("output_norm.weight", checkpoint.shape(NORM), partial(_read, checkpoint, NORM))
    layers = layer_entries(checkpoint, range(checkpoint.layers))
    return [*vocabulary_entries(checkpoint), norm, *rope_entries(checkpoint), *layers]


def vocabulary_entries(checkpoint: Checkpoint) -> list[TensorEntry]:
    """The embeddings, and the head unless it is tied to them."""
    names = {EMBEDDING: "token_embd.weight", HEAD: "output.weight"}
    return [
        TensorEntry(names[name], checkpoint.shape(name), partial(_read, checkpoint, name))
        for name in dict.fromkeys((EMBEDDING, checkpoint.head))
    ]


def layer_entries(checkpoint: Checkpoint, layers: range) -> list[TensorEntry]:
    """The tensors of these layers, renumbered from 0."""
    return [
        TensorEntry(
            f"blk.{layer - layers.start}.{each.gguf}",
            each.shape,
            partial(_read, checkpoint, layer_prefix(layer) + name),
        )
        for layer in layers
        for name, each in layer_tensors(checkpoint.config).items()
    ]


def _read(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    return values(checkpoint.config, name, checkpoint.tensor(name))


def values(config: ModelConfig, name: str, tensor: Tensor) -> NDArray[np.float32]:
    """A tensor in float32, as llama.cpp computes with it."""
    found: NDArray[np.float32] = tensor.float().numpy()
    if "norm" in name:
        found = found + np.float32(config.family.norm_offset)
    if config.architecture == "gemma3" and ".q_norm." in name:  # llama.cpp always divides by the root of head_size
        found = found * np.float32((config.head_size / config.query_pre_attn_scalar) ** 0.5)
    if config.architecture == "llama" and ".q_proj." in name:
        return _interleave_rotary_pairs(found, config.num_attention_heads)
    if config.architecture == "llama" and ".k_proj." in name:
        return _interleave_rotary_pairs(found, config.kv_heads)
    return found


def _interleave_rotary_pairs(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Hugging Face keeps the two rows of a rotary pair half a head apart, llama.cpp's Llama side by side."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write(
    writer: gguf.GGUFWriter, path: Path, entries: Iterable[TensorEntry], quantization: str, done: Step = lambda: None
) -> None:
    """Writes the file with one tensor at a time in memory. `done` is called after each tensor."""
    kinds = {entry: QUANTIZATIONS[quantization][0] if len(entry.shape) > 1 else Kind.F32 for entry in entries}
    for entry, kind in kinds.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(entry.name, entry.shape, np.float32, math.prod(entry.shape) // block * size, kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry, kind in kinds.items():
        writer.write_tensor_data(gguf.quants.quantize(entry.read(), kind))
        done()
    writer.close()
