"""Writes tiny GGUF models with random weights, of each kind of memory: attention, sliding window, recurrent, hybrid."""

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np

from benchmarks.random_gguf import VOCABULARY, add_vocabulary

WIDTH, LAYERS, HEADS, HEAD, FEED_FORWARD = 64, 4, 2, 32, 128
CONVOLUTION, STATE, INNER, TIME_STEPS = 4, 16, 2 * WIDTH, 8
WINDOW = 32
"""Tokens that the layers with a sliding window see; all others see everything."""
CONTEXT = 2048
VOCABULARY_SIZE = 4096

Shapes = dict[str, tuple[int, ...]]

FEED_FORWARD_SHAPES: Shapes = {
    "ffn_norm.weight": (WIDTH,),
    "ffn_gate.weight": (FEED_FORWARD, WIDTH),
    "ffn_up.weight": (FEED_FORWARD, WIDTH),
    "ffn_down.weight": (WIDTH, FEED_FORWARD),
}
ATTENTION_SHAPES: Shapes = {
    "attn_norm.weight": (WIDTH,),
    "attn_q.weight": (HEADS * HEAD, WIDTH),
    "attn_k.weight": (HEAD, WIDTH),
    "attn_v.weight": (HEAD, WIDTH),
    "attn_output.weight": (WIDTH, HEADS * HEAD),
}
QUERY_NORM_SHAPES: Shapes = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}


def _qwen2(_: int) -> Shapes:
    biases: Shapes = {"attn_q.bias": (HEADS * HEAD,), "attn_k.bias": (HEAD,), "attn_v.bias": (HEAD,)}
    return ATTENTION_SHAPES | biases | FEED_FORWARD_SHAPES


def _qwen3(_: int) -> Shapes:
    return ATTENTION_SHAPES | QUERY_NORM_SHAPES | FEED_FORWARD_SHAPES


def _gemma3(_: int) -> Shapes:
    after: Shapes = {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
    return ATTENTION_SHAPES | QUERY_NORM_SHAPES | FEED_FORWARD_SHAPES | after


def _mamba(_: int) -> Shapes:
    return {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (2 * INNER, WIDTH),
        "ssm_conv1d.weight": (INNER, CONVOLUTION),
        "ssm_conv1d.bias": (INNER,),
        "ssm_x.weight": (TIME_STEPS + 2 * STATE, INNER),
        "ssm_dt.weight": (INNER, TIME_STEPS),
        "ssm_dt.bias": (INNER,),
        "ssm_a": (INNER, STATE),
        "ssm_d": (INNER,),
        "ssm_out.weight": (WIDTH, INNER),
    }


def _mamba2(_: int) -> Shapes:
    channels = INNER + 2 * STATE
    return {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (INNER + channels + TIME_STEPS, WIDTH),
        "ssm_conv1d.weight": (channels, CONVOLUTION),
        "ssm_conv1d.bias": (channels,),
        "ssm_dt.bias": (TIME_STEPS,),
        "ssm_a": (TIME_STEPS, 1),
        "ssm_d": (TIME_STEPS, 1),
        "ssm_norm.weight": (1, INNER),
        "ssm_out.weight": (WIDTH, INNER),
    }


def _lfm2(layer: int) -> Shapes:
    convolution: Shapes = {
        "attn_norm.weight": (WIDTH,),
        "shortconv.conv.weight": (WIDTH, CONVOLUTION - 1),
        "shortconv.in_proj.weight": (3 * WIDTH, WIDTH),
        "shortconv.out_proj.weight": (WIDTH, WIDTH),
    }
    return FEED_FORWARD_SHAPES | (ATTENTION_SHAPES | QUERY_NORM_SHAPES if _attends(layer) else convolution)


def _qwen35(layer: int) -> Shapes:
    heads = INNER // STATE
    delta_net: Shapes = {
        "attn_norm.weight": (WIDTH,),
        "attn_qkv.weight": (2 * STATE + INNER, WIDTH),
        "attn_gate.weight": (INNER, WIDTH),
        "ssm_conv1d.weight": (2 * STATE + INNER, CONVOLUTION),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_beta.weight": (heads, WIDTH),
        "ssm_alpha.weight": (heads, WIDTH),
        "ssm_norm.weight": (STATE,),
        "ssm_out.weight": (WIDTH, INNER),
    }
    gated = ATTENTION_SHAPES | QUERY_NORM_SHAPES | {"attn_q.weight": (2 * HEADS * HEAD, WIDTH)}
    shapes = FEED_FORWARD_SHAPES | (gated if _attends(layer) else delta_net)
    shapes["post_attention_norm.weight"] = shapes.pop("ffn_norm.weight")
    return shapes


KINDS: dict[str, Callable[[int], Shapes]] = {
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "lfm2": _lfm2,
    "lfm2-window": _lfm2,
    "qwen35": _qwen35,
}
"""The shapes of a layer's tensors; what comes before a dash is llama.cpp's name of the architecture."""
RECURRENT = ("mamba", "mamba2", "lfm2", "lfm2-window", "qwen35")
"""Those that keep a recurrent state, in all layers or in some."""


def write(path: Path, kind: str) -> Path:
    """Writes a model of a kind in KINDS with the demo edge's vocabulary; returns `path`."""
    writer = gguf.GGUFWriter(path, kind.partition("-")[0])
    writer.add_name(f"random-{kind}")
    writer.add_vocab_size(VOCABULARY_SIZE)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_rms_eps(1e-5)
    if kind.startswith("mamba"):
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
    else:
        _add_attention(writer, kind)
    if kind in ("mamba", "mamba2", "qwen35"):
        writer.add_ssm_conv_kernel(CONVOLUTION)
        writer.add_ssm_inner_size(INNER)
        writer.add_ssm_state_size(STATE)
        writer.add_ssm_group_count(1)
        writer.add_ssm_time_step_rank(INNER // STATE if kind == "qwen35" else TIME_STEPS)
    end = add_vocabulary(writer, gguf.GGUFReader(VOCABULARY), VOCABULARY_SIZE)
    for name, values in _tensors(kind, end):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_attention(writer: gguf.GGUFWriter, kind: str) -> None:
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([int(_attends(layer)) for layer in range(LAYERS)] if kind.startswith("lfm2") else 1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    if kind in ("gemma3", "lfm2-window"):
        writer.add_sliding_window(WINDOW)
    if kind == "gemma3":
        writer.add_sliding_window_pattern([not _attends(layer) for layer in range(LAYERS)])
    if kind.startswith("lfm2"):
        writer.add_shortconv_l_cache(CONVOLUTION - 1)
    if kind == "qwen35":
        writer.add_rope_dimension_sections([HEAD // 8, HEAD // 8, HEAD // 4, 0])
        writer.add_full_attention_interval(2)


def _attends(layer: int) -> bool:
    """Whether a layer sees all tokens, in models whose layers are of two kinds."""
    return layer % 2 == 1


def _tensors(kind: str, end: int) -> Iterator[tuple[str, np.ndarray]]:
    random = np.random.default_rng(1)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if "norm" in name:
            return np.ones(shape, np.float32)
        drawn = random.standard_normal(shape, np.float32)
        if "ssm_a" in name and not name.endswith("alpha.weight"):
            return -np.exp(drawn / 4)  # the decay of a state
        return drawn / np.float32(shape[-1] ** 0.5)

    yield "token_embd.weight", values("token_embd", (VOCABULARY_SIZE, WIDTH))
    output = values("output", (VOCABULARY_SIZE, WIDTH))
    output[end] = 0  # never the most likely token, so answers run to their limit
    yield "output.weight", output
    yield ("token_embd_norm" if kind.startswith("lfm2") else "output_norm") + ".weight", np.ones(WIDTH, np.float32)
    for layer in range(LAYERS):
        for name, shape in KINDS[kind](layer).items():
            yield f"blk.{layer}.{name}", values(name, shape)
