"""Writes GGUF files of Llama models with random weights, for measuring the edge's speed.

models/random_model.py makes such models for the cloud, as Transformers checkpoints.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from common.files.installation import CACHE, PROJECT

VOCABULARY = PROJECT / "models" / "demo-edge.gguf"
Q8_0 = gguf.GGMLQuantizationType.Q8_0
F32 = gguf.GGMLQuantizationType.F32


@dataclass(frozen=True)
class LlamaShape:
    """A Llama model's sizes; the embedding is also the output matrix."""

    name: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int = 4096


SMOL_135M = LlamaShape("random-135m", 49_152, 576, 30, 9, 3, 1536)
"""The shape of SmolLM2-135M, one of the smallest models in use."""
WIDE_VOCABULARY = LlamaShape("random-wide", 150_000, 576, 12, 9, 3, 1536)
"""A vocabulary as large as Qwen's on a body smaller than in any real model: confidence takes a larger share here."""


def model_file(shape: LlamaShape) -> Path:
    """The path of a random model of this shape with the demo edge's vocabulary; written at the first call."""
    path = CACHE / "models" / f"{shape.name}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write(path, shape, vocabulary_of=VOCABULARY)
    return path


def write(path: Path, shape: LlamaShape, vocabulary_of: Path, kind: gguf.GGMLQuantizationType = Q8_0) -> None:
    """Writes `path` with the tokens of the GGUF file `vocabulary_of`, padded with tokens that no text contains."""
    partial = path.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name(shape.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == Q8_0 else gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    end = add_vocabulary(writer, gguf.GGUFReader(vocabulary_of), shape.vocabulary)
    for name, values in _tensors(shape, end):
        if values.ndim == 1 or kind == F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def add_vocabulary(writer: gguf.GGUFWriter, source: gguf.GGUFReader, size: int) -> int:
    """Copies the tokenizer of `source`; returns the end token."""
    content = {name: field.contents() for name, field in source.fields.items() if name.startswith("tokenizer.")}
    tokens, types = content["tokenizer.ggml.tokens"], content["tokenizer.ggml.token_type"]
    filler = range(size - len(tokens))
    writer.add_tokenizer_model(content["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(content["tokenizer.ggml.pre"])
    writer.add_token_list(tokens + [f"w{i:06}" for i in filler])
    writer.add_token_types(types + [int(gguf.TokenType.NORMAL) for _ in filler])
    writer.add_token_merges(content["tokenizer.ggml.merges"])
    writer.add_eos_token_id(content["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(content["tokenizer.chat_template"])
    return int(content["tokenizer.ggml.eos_token_id"])


def _tensors(shape: LlamaShape, end: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    random = np.random.default_rng(1)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return random.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)

    one = np.ones(shape.width, np.float32)
    kv_width = shape.width // shape.heads * shape.kv_heads
    embedding = matrix(shape.vocabulary, shape.width)
    embedding[end] = 0  # never the most likely token, so answers run to their limit
    yield "token_embd.weight", embedding
    yield "output_norm.weight", one
    for layer in range(shape.layers):
        for name, rows, columns in (
            ("attn_q", shape.width, shape.width),
            ("attn_k", kv_width, shape.width),
            ("attn_v", kv_width, shape.width),
            ("attn_output", shape.width, shape.width),
            ("ffn_gate", shape.feed_forward, shape.width),
            ("ffn_up", shape.feed_forward, shape.width),
            ("ffn_down", shape.width, shape.feed_forward),
        ):
            yield f"blk.{layer}.{name}.weight", matrix(rows, columns)
        yield f"blk.{layer}.attn_norm.weight", one
        yield f"blk.{layer}.ffn_norm.weight", one
