"""Exports the trained models: bf16 safetensors with a chat template for vLLM, Q8_0 GGUF for llama.cpp.

python -m models.train.export [--only cloud|edge|edge-other]
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cli.args import run_sync_program
from common.errors import ConfigError
from models.demo import CHECKPOINTS, CLOUD, EDGE, EDGE_OTHER, MODELS
from models.partition import gguf_export
from models.partition.checkpoint import Checkpoint
from models.train.tokenizer import OTHER, PAIR, DemoVocabulary


def trained(name: str) -> Path:
    """The folder that training left; raises ConfigError if there is none."""
    folder = CHECKPOINTS / name
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; run `python -m models.train` first")
    return folder


def export_cloud() -> None:
    """Writes `demo-cloud/`: the model in bf16, the tokenizer and its chat template."""
    checkpoint, tokenizer = trained("cloud"), trained(PAIR.name)
    shutil.rmtree(CLOUD, ignore_errors=True)
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(CLOUD)
    PreTrainedTokenizerFast.from_pretrained(tokenizer).save_pretrained(CLOUD)


def export_edge(checkpoint: str, vocabulary: DemoVocabulary, path: Path) -> None:
    """Writes one GGUF file with every matrix in Q8_0."""
    source = Checkpoint(trained(checkpoint))
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_name(path.stem)
    gguf_export.add_shape(writer, source.config, range(source.layers), "q8_0")
    add_vocabulary(writer, vocabulary)
    gguf_export.write(writer, path, gguf_export.model_entries(source), "q8_0")


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: DemoVocabulary) -> None:
    model = json.loads((trained(vocabulary.name) / "tokenizer.json").read_text())["model"]
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


Export = tuple[Callable[[], None], tuple[Path, ...]]
EXPORTS: dict[str, Export] = {
    "cloud": (export_cloud, (CLOUD / "model.safetensors",)),
    "edge": (lambda: export_edge("edge", PAIR, EDGE), (EDGE,)),
    "edge-other": (lambda: export_edge("edge-other", OTHER, EDGE_OTHER), (EDGE_OTHER,)),
}
"""For each model: how to export it, and the weights that this writes."""


def export(chosen: list[Export]) -> None:
    for write, files in chosen:
        write()
        for path in files:
            print(f"{path.relative_to(MODELS.parent)}: {path.stat().st_size / 1e6:.1f} MB")


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m models.train.export", description="Export the trained models for vLLM and llama.cpp."
    )
    parser.add_argument("--only", choices=EXPORTS, help="export only this model (default: all)")
    args = parser.parse_args()
    return run_sync_program(lambda: export([EXPORTS[args.only]] if args.only else [*EXPORTS.values()]))


if __name__ == "__main__":
    sys.exit(main())
