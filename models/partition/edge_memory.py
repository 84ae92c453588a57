"""How much memory the segments of a cut need at the edge, from the model's config alone: weights, KV, states, buffers.

The edge server's own program, and a model of its own for drafts, come on top.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import gguf

from common.config_edge import EdgeModelConfig
from edge.llama.segment import CHUNK
from models.partition.gguf_export import QUANTIZATIONS
from models.partition.layer_tensors import layer_tensors
from models.partition.model_config import ModelConfig

MIXTURES = {"q6_k": 6.6, "q5_k_m": 5.8, "q5_k_s": 5.6, "q4_k_m": 4.9, "q4_k_s": 4.7, "q3_k_m": 4.0, "q2_k": 3.2}
"""Bits of a weight in files that llama.cpp quantizes by itself, as its documentation lists them for Llama 3.1 8B."""
KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}


@dataclass(frozen=True)
class ExitForm:
    """What an exit has of its own: a head, or a translator (float32); with neither it has the model's head."""

    head: bool = False
    translator: bool = False


def layer_weights(config: ModelConfig) -> int:
    """Numbers in one layer."""
    return sum(math.prod(tensor.shape) for tensor in layer_tensors(config).values())


def weight_bytes(quantization: str) -> float:
    """Bytes of a number in a matrix."""
    if quantization in MIXTURES:
        return MIXTURES[quantization] / 8
    block, size = gguf.GGML_QUANT_SIZES[QUANTIZATIONS[quantization][0]]
    return size / block


def edge_bytes(
    config: ModelConfig, exits: Sequence[int], forms: Sequence[ExitForm], quantization: str, model: EdgeModelConfig
) -> float:
    """Bytes for the segments that end at `exits`, run as `model` says; an upper bound for the buffers of steps."""
    buffers = sum(_step_bytes(config, number, len(exits)) for number in range(len(exits)))
    states = 4.0 * config.hidden_size * max(1, len(exits) - 1) * _positions(config, model)
    return files_bytes(config, exits, forms, quantization) + _kv_bytes(config, exits[-1], model) + states + buffers


def files_bytes(config: ModelConfig, exits: Sequence[int], forms: Sequence[ExitForm], quantization: str) -> float:
    """The files that the edge loads, without the text of the vocabulary."""
    each, vocabulary = weight_bytes(quantization), config.vocab_size * config.hidden_size
    shared = not all(form.head for form in forms)
    matrices = vocabulary * ((1 if config.tie_word_embeddings else 2) if shared else 0)
    matrices += vocabulary * sum(form.head for form in forms) + (vocabulary if forms[0].head else 0)
    translators = 4.0 * config.hidden_size * (config.hidden_size + 1) * sum(form.translator for form in forms)
    small = sum(math.prod(t.shape) for t in layer_tensors(config).values() if len(t.shape) == 1)
    layer = (layer_weights(config) - small) * each + 4.0 * small
    return matrices * each + translators + exits[-1] * layer + 4.0 * config.hidden_size * len(exits)


def _kv_bytes(config: ModelConfig, layers: int, model: EdgeModelConfig) -> float:
    """Keys and values of all sequences in so many layers; windows save nothing, since they are kept whole."""
    row = 2 * config.kv_heads * config.head_size * KV_BYTES[model.kv_type]
    return row * layers * _positions(config, model)


def _positions(config: ModelConfig, model: EdgeModelConfig) -> int:
    return min(model.context_length, config.context) * model.sequences


def _step_bytes(config: ModelConfig, number: int, segments: int) -> float:
    """llama.cpp's buffers of the largest step of segment `number`: its graph, and logits of all inputs, twice.

    The last of several segments computes them for the last inputs only.
    """
    logits = 0 if 0 < number == segments - 1 else 2 * config.vocab_size
    return 4.0 * CHUNK * (logits + 2 * config.intermediate_size + 6 * config.hidden_size)
