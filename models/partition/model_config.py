"""Reads the config.json of a checkpoint: the fields that affect the computation, and why a model cannot be cut."""

from pathlib import Path
from typing import Any

import msgspec

from common.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers: those that see every position, and those that see the last `sliding_window` only."""


class Family(msgspec.Struct, frozen=True):
    """An architecture of transformers: llama.cpp's name of it, its types of rotary scaling there, its activation."""

    name: str
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    activation: str = "silu"
    defaults: dict[str, Any] = {}
    """Values of keys that a config.json of this architecture may leave out, where they differ from the others'."""
    norm_offset: float = 0.0
    """What the model adds to the weights of its norms."""
    scaled_embeddings: bool = False
    """Whether the model multiplies embeddings by the square root of their length; llama.cpp does so only to tokens."""


FAMILIES = {
    "LlamaForCausalLM": Family("llama", ropes=("default", "linear", "yarn", "llama3")),
    "MistralForCausalLM": Family("llama", defaults={"sliding_window": 4096, "num_key_value_heads": 8}),
    "Qwen2ForCausalLM": Family("qwen2"),
    "Qwen3ForCausalLM": Family("qwen3", defaults={"head_dim": 128, "num_key_value_heads": 32}),
    "Gemma3ForCausalLM": Family(
        "gemma3",
        ropes=("default", "linear"),
        activation="gelu_pytorch_tanh",
        defaults={
            "head_dim": 256,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
            "max_position_embeddings": 131072,
        },
        norm_offset=1.0,
        scaled_embeddings=True,
    ),
    "Phi3ForCausalLM": Family("phi3", ropes=("default",)),
}
"""The architectures that can be cut."""


class ModelConfig(msgspec.Struct):
    """The fields of a config.json that affect the computation."""

    architectures: list[str]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    hidden_activation: str | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    sliding_window_pattern: int = 6
    layer_types: list[str] | None = None
    query_pre_attn_scalar: float = 256.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: bool = False
    partial_rotary_factor: float = 1.0
    rope_theta: float = 10000.0
    rope_local_base_freq: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None

    @property
    def family(self) -> Family:
        return FAMILIES[self.architectures[0]]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.family.name

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def activation(self) -> str:
        return self.hidden_activation or self.hidden_act

    @property
    def context(self) -> int:
        """Positions over which llama.cpp computes what the model does; it has no window for Mistral and Phi-3."""
        window = self.sliding_window if self.family.name in ("llama", "phi3") else None
        return min(self.max_position_embeddings, window or self.max_position_embeddings)

    @property
    def kinds(self) -> list[str]:
        """FULL or SLIDING for each layer."""
        if self.family.name != "gemma3":
            return [FULL] * self.num_hidden_layers
        period = self.sliding_window_pattern
        return self.layer_types or [SLIDING if (i + 1) % period else FULL for i in range(self.num_hidden_layers)]

    @property
    def embedding_scale(self) -> float:
        return self.hidden_size**0.5 if self.family.scaled_embeddings else 1.0

    @property
    def rope(self) -> dict[str, Any]:
        """`rope_theta`, `rope_type` and the type's parameters of FULL layers, from whichever keys the config has."""
        found = {"rope_theta": self.rope_theta} | (self.rope_scaling or {})
        found |= (self.rope_parameters or {}).get(FULL, self.rope_parameters or {})
        return found | {"rope_type": found.get("rope_type", found.get("type", "default"))}

    @property
    def local_rope_theta(self) -> float:
        """That of SLIDING layers."""
        local: dict[str, Any] = (self.rope_parameters or {}).get(SLIDING) or {}
        return float(local.get("rope_theta", self.rope_local_base_freq))


def read_config(path: Path) -> ModelConfig:
    """Raises ConfigError for what cannot be read, and with the reason for a model that cannot be cut."""
    try:
        data = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        named = data.get("architectures")
        if not isinstance(named, list) or len(named) != 1 or named[0] not in FAMILIES:
            raise ConfigError(f"{path}: architecture {named}; only {_listed(list(FAMILIES))} can be cut")
        config = msgspec.convert(FAMILIES[named[0]].defaults | data, ModelConfig, strict=False)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if fault := _fault(config):
        raise ConfigError(f"{path}: {named[0]}: {fault}")
    return config


def _fault(config: ModelConfig) -> str | None:
    """What in a config the engines cannot compute; None: nothing."""
    family = config.family
    if config.rope["rope_type"] not in family.ropes:
        return f"rotary positions of type {config.rope['rope_type']!r} are not supported"
    if config.partial_rotary_factor != 1:
        return "rotary positions of only a part of each head are not supported"
    if config.activation != family.activation:
        return f"activation {config.activation!r} is not supported"
    if config.quantization_config:
        return "its weights are quantized already; use the original checkpoint"
    if config.use_sliding_window:
        return "llama.cpp has no sliding window for this architecture"
    if config.attn_logit_softcapping or config.final_logit_softcapping:
        return "capped logits are not supported"
    if config.use_bidirectional_attention:
        return "its attention looks ahead, so it cannot write"
    if (config.attention_bias or config.mlp_bias) and config.architecture != "llama":
        return "attention_bias and mlp_bias are not supported for this architecture"
    if config.architecture in ("qwen2", "phi3") and config.head_size * config.num_attention_heads != config.hidden_size:
        return "llama.cpp requires that the heads together have the hidden size"
    if len(config.kinds) != config.num_hidden_layers or set(config.kinds) - {FULL, SLIDING}:
        return "its layer_types are not supported"
    return None


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
