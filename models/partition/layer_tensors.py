"""The tensors of one layer of each family: their names in checkpoints and in GGUF files, and their shapes."""

from typing import NamedTuple

from models.partition.model_config import ModelConfig

Shape = tuple[int, ...]


class LayerTensor(NamedTuple):
    """llama.cpp's name, without the number of the layer, and the shape."""

    gguf: str
    shape: Shape


def layer_tensors(config: ModelConfig) -> dict[str, LayerTensor]:
    """The tensors of every layer by their names in the checkpoint, without `model.layers.N.`."""
    found = (_fused if config.architecture == "phi3" else _separate)(config)
    found |= {
        "self_attn.o_proj.weight": ("attn_output", (config.hidden_size, _queries(config))),
        "mlp.down_proj.weight": ("ffn_down", (config.hidden_size, config.intermediate_size)),
    }
    found |= _biases(config) | _norms(config)
    return {name: LayerTensor(f"{gguf}.{name.rpartition('.')[2]}", shape) for name, (gguf, shape) in found.items()}


Tensors = dict[str, tuple[str, Shape]]


def _queries(config: ModelConfig) -> int:
    return config.num_attention_heads * config.head_size


def _keys(config: ModelConfig) -> int:
    return config.kv_heads * config.head_size


def _separate(config: ModelConfig) -> Tensors:
    hidden, queries, keys = config.hidden_size, _queries(config), _keys(config)
    return {
        "self_attn.q_proj.weight": ("attn_q", (queries, hidden)),
        "self_attn.k_proj.weight": ("attn_k", (keys, hidden)),
        "self_attn.v_proj.weight": ("attn_v", (keys, hidden)),
        "mlp.gate_proj.weight": ("ffn_gate", (config.intermediate_size, hidden)),
        "mlp.up_proj.weight": ("ffn_up", (config.intermediate_size, hidden)),
    }


def _fused(config: ModelConfig) -> Tensors:
    return {
        "self_attn.qkv_proj.weight": ("attn_qkv", (_queries(config) + 2 * _keys(config), config.hidden_size)),
        "mlp.gate_up_proj.weight": ("ffn_up", (2 * config.intermediate_size, config.hidden_size)),
    }


def _biases(config: ModelConfig) -> Tensors:
    found: Tensors = {}
    if config.attention_bias or config.architecture == "qwen2":
        found |= {
            "self_attn.q_proj.bias": ("attn_q", (_queries(config),)),
            "self_attn.k_proj.bias": ("attn_k", (_keys(config),)),
            "self_attn.v_proj.bias": ("attn_v", (_keys(config),)),
        }
    if config.attention_bias:
        found["self_attn.o_proj.bias"] = ("attn_output", (config.hidden_size,))
    if config.mlp_bias:
        found |= {
            "mlp.gate_proj.bias": ("ffn_gate", (config.intermediate_size,)),
            "mlp.up_proj.bias": ("ffn_up", (config.intermediate_size,)),
            "mlp.down_proj.bias": ("ffn_down", (config.hidden_size,)),
        }
    return found


def _norms(config: ModelConfig) -> Tensors:
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    if config.architecture == "gemma3":
        names["post_attention_layernorm"] = "post_attention_norm"
        names |= {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    found: Tensors = {f"{name}.weight": (gguf, (config.hidden_size,)) for name, gguf in names.items()}
    if config.architecture in ("gemma3", "qwen3"):
        found |= {f"self_attn.{at}_norm.weight": (f"attn_{at}_norm", (config.head_size,)) for at in "qk"}
    return found
