"""Exports the trained models: bf16 safetensors with chat template for vLLM, Q8_0 GGUF for llama.cpp. Trains nothing.

python -m models.train.export [--only cloud|edge|edge-other]
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.partition import gguf_export
from models.partition.checkpoint import Checkpoint
from models.train.tokenizer import OTHER, PAIR, DemoVocabulary

MODELS = Path(__file__).parents[1]
CHECKPOINTS = MODELS / "checkpoints"
CLOUD = MODELS / "demo-cloud"
EXITS = MODELS / "demo-cloud-exits.safetensors"
"""Its exits: beside it, since vLLM loads every safetensors file of a model's folder."""
EDGE = MODELS / "demo-edge.gguf"
EDGE_OTHER = MODELS / "demo-edge-other.gguf"


def export_cloud() -> None:
    """Writes `demo-cloud/`: the model in bf16, the tokenizer and its chat template."""
    shutil.rmtree(CLOUD, ignore_errors=True)
    model = LlamaForCausalLM.from_pretrained(CHECKPOINTS / "cloud", dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(CLOUD)
    PreTrainedTokenizerFast.from_pretrained(CHECKPOINTS / PAIR.name).save_pretrained(CLOUD)


def export_edge(checkpoint: str, vocabulary: DemoVocabulary, path: Path) -> None:
    """Writes one GGUF file, every matrix in Q8_0."""
    source = Checkpoint(CHECKPOINTS / checkpoint)
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_name(path.stem)
    gguf_export.add_shape(writer, source.config, source.layers, "q8_0")
    add_vocabulary(writer, vocabulary)
    gguf_export.write(writer, path, gguf_export.model_entries(source), "q8_0")


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


EXPORTS: dict[str, tuple[Callable[[], None], tuple[Path, ...]]] = {
    "cloud": (export_cloud, (CLOUD / "model.safetensors",)),
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
