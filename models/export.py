"""Exports the trained models: bf16 safetensors with chat template for vLLM, Q8_0 GGUF for llama.cpp. Trains nothing.

python -m models.export [--only cloud|edge|edge-other]
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.tokenizer import OTHER, PAIR, DemoVocabulary

MODELS = Path(__file__).parent
CHECKPOINTS = MODELS / "checkpoints"
CLOUD = MODELS / "demo-cloud"
EXITS = MODELS / "demo-cloud-exits.safetensors"
EDGE = MODELS / "demo-edge.gguf"
EDGE_OTHER = MODELS / "demo-edge-other.gguf"
LAYER_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def export_cloud() -> None:
    """Writes `demo-cloud/`: the model in bf16, the tokenizer and its chat template; and its exits beside it.

    Beside it, since vLLM loads every safetensors file of a model's folder.
    """
    shutil.rmtree(CLOUD, ignore_errors=True)
    model = LlamaForCausalLM.from_pretrained(CHECKPOINTS / "cloud", dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(CLOUD)
    exits = load_file(CHECKPOINTS / "cloud" / "exits.safetensors")
    save_file({name: t.to(torch.bfloat16) for name, t in exits.items()}, EXITS)
    PreTrainedTokenizerFast.from_pretrained(CHECKPOINTS / PAIR.name).save_pretrained(CLOUD)


def export_edge(checkpoint: str, vocabulary: DemoVocabulary, path: Path) -> None:
    """Writes one GGUF file, every matrix in Q8_0."""
    source = CHECKPOINTS / checkpoint
    config = LlamaConfig.from_pretrained(source)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    add_vocabulary(writer, vocabulary)
    for name, tensor in load_file(source / "model.safetensors").items():
        add_tensor(writer, config, name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: DemoVocabulary) -> None:
    model = json.loads((CHECKPOINTS / vocabulary.name / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if t in vocabulary.special else normal for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokens.index(vocabulary.end))
    writer.add_add_bos_token(False)
    writer.add_chat_template(vocabulary.chat_template)


def add_tensor(writer: gguf.GGUFWriter, config: LlamaConfig, name: str, values: NDArray[np.float32]) -> None:
    """Adds one tensor under llama.cpp's name; norms stay in float32, and q and k rows are put in its rotary order."""
    gguf_name = _gguf_name(name)
    if values.ndim == 1:
        writer.add_tensor(gguf_name, values)
        return
    if "q_proj" in name:
        values = _interleave_rotary_pairs(values, config.num_attention_heads)
    elif "k_proj" in name:
        values = _interleave_rotary_pairs(values, config.num_key_value_heads)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(gguf_name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _gguf_name(name: str) -> str:
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in top:
        return top[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_TENSORS[rest.removesuffix('.weight')]}.weight"


def _interleave_rotary_pairs(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Hugging Face keeps a head's rotary pairs half a head apart, llama.cpp side by side."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


EXPORTS: dict[str, tuple[Callable[[], None], tuple[Path, ...]]] = {
    "cloud": (export_cloud, (CLOUD / "model.safetensors", EXITS)),
    "edge": (lambda: export_edge("edge", PAIR, EDGE), (EDGE,)),
    "edge-other": (lambda: export_edge("edge-other", OTHER, EDGE_OTHER), (EDGE_OTHER,)),
}
"""What can be exported, and the weights that it leaves."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the trained models for vLLM and llama.cpp.")
    parser.add_argument("--only", choices=EXPORTS, help="export just this one")
    args = parser.parse_args()
    for export, written in [EXPORTS[args.only]] if args.only else EXPORTS.values():
        export()
        for path in written:
            print(f"{path.relative_to(MODELS.parent)}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
