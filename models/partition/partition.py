"""Cuts a Llama or Qwen2 checkpoint into edge segments, each with an exit at its end, and a cloud tail.

    python -m models.partition --model FOLDER|HUB-ID --exits 2,4 [--exits-file FILE.safetensors]
                               [--quantize f32|f16|bf16|q8_0|q4_k_m|...] --output FOLDER

Reads and writes one tensor at a time. Segments are GGUF models: the first takes token ids, a later one the hidden
states of the segment before. The tail is a checkpoint for vLLM that takes the hidden states of the first segment.
"""

import argparse
import itertools
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import gguf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from safetensors.torch import save_file
from torch import Tensor

from cli.args import run_sync_program
from cli.terminal import console
from common.errors import ConfigError
from common.protocol import split_manifest
from common.protocol.split_manifest import Segment, SplitManifest, TailManifest, file_hash, folder_hash
from edge.llama import quantize
from models.partition import check as split_check
from models.partition import gguf_export, gguf_vocabulary
from models.partition.checkpoint import EMBEDDING, Checkpoint, find
from models.partition.exit_tensors import Exits, exits_of, layer_list
from models.partition.gguf_export import QUANTIZATIONS, Step, TensorEntry

SHARD = 1 << 29
"""Values per file of the tail, roughly; so many are in memory together."""
TAIL = "tail"
TOKENIZER_FILES = [
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
]


def segment_entries(checkpoint: Checkpoint, exits: Exits, number: int) -> list[TensorEntry]:
    """The tensors of edge segment `number`, counted from 0.

    llama.cpp requires embeddings in every model, and uses them as the head if there is no other. A later segment
    embeds nothing, so it has its exit's head in their place.
    """
    exit = exits.layers[number]
    shape = (checkpoint.config.vocab_size, checkpoint.config.hidden_size)
    head = TensorEntry("output.weight", shape, lambda: exits.head(exit).float().numpy())
    embedding = TensorEntry("token_embd.weight", shape, lambda: checkpoint.tensor(EMBEDDING).float().numpy())
    if number > 0:
        around = [head._replace(name="token_embd.weight")]
    elif exits.has_head(exit) or checkpoint.head != EMBEDDING:
        around = [embedding, head]
    else:
        around = [embedding]
    around.append(TensorEntry("output_norm.weight", shape[1:], lambda: exits.norm(exit).float().numpy()))
    layers = range(exits.layers[number - 1] if number else 0, exit)
    return [*around, *gguf_export.rope_entries(checkpoint), *gguf_export.layer_entries(checkpoint, layers)]


@dataclass(frozen=True)
class SegmentPlan:
    """One segment to write: its tensors, its layers in the whole model, its name and quantization."""

    entries: list[TensorEntry]
    layers: range
    title: str
    quantization: str


def write_segment(checkpoint: Checkpoint, plan: SegmentPlan, path: Path, done: Step) -> None:
    """Writes one segment's file; the first one gets the vocabulary. `done` is called after each tensor."""
    by_llama_cpp = plan.quantization in quantize.TYPES
    kind, target = ("f32", path.with_suffix(".f32")) if by_llama_cpp else (plan.quantization, path)
    writer = gguf.GGUFWriter(None, checkpoint.config.architecture)
    writer.add_name(plan.title)
    gguf_export.add_shape(writer, checkpoint.config, len(plan.layers), kind)
    if plan.layers.start == 0:
        gguf_vocabulary.add(writer, checkpoint.tokenizer, checkpoint.config.vocab_size)
    else:
        writer.add_tokenizer_model("no_vocab")
    gguf_export.write(writer, target, plan.entries, kind, done)
    if by_llama_cpp:
        quantize.quantize(target, path, plan.quantization)
        target.unlink()


def write_tail(checkpoint: Checkpoint, first: int, folder: Path, done: Step) -> None:
    """Writes the layers from `first` on as a checkpoint; `done` is called after each tensor."""
    folder.mkdir()
    layers = range(first, checkpoint.layers)
    config = json.loads((checkpoint.folder / "config.json").read_text()) | {"num_hidden_layers": len(layers)}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][first:]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    shards = tail_shards(checkpoint, layers)
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        places = {tail_name(name, first): file for names, file in zip(shards, files, strict=True) for name in names}
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for names, file in zip(shards, files, strict=True):
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensors[tail_name(name, first)] = checkpoint.tensor(name)
            done()
        save_file(tensors, folder / file, {"format": "pt"})


def tail_shards(checkpoint: Checkpoint, layers: range) -> list[list[str]]:
    """The names of the tail's tensors by file; a file is full when it has SHARD values."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in checkpoint.names(layers):
        if size >= SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += math.prod(checkpoint.shape(name))
    return shards


def tail_name(name: str, first: int) -> str:
    """A tensor's name in the tail."""
    if not name.startswith("model.layers."):
        return name
    model, layers, layer, rest = name.split(".", 3)
    return f"{model}.{layers}.{int(layer) - first}.{rest}"


def cut(
    checkpoint: Checkpoint, exits: Exits, quantization: str, name: str, folder: Path, bar: Progress
) -> SplitManifest:
    """Writes all pieces and their manifest into `folder`; progress goes to `bar`."""
    plans = [
        SegmentPlan(
            entries=segment_entries(checkpoint, exits, number),
            layers=range(begin, end),
            title=f"{name}, layers {begin} to {end - 1}",
            quantization=quantization,
        )
        for number, (begin, end) in enumerate(itertools.pairwise([0, *exits.layers]))
    ]
    first = exits.layers[0]
    tensors = sum(len(plan.entries) for plan in plans) + len(checkpoint.names(range(first, checkpoint.layers)))
    task = bar.add_task("cutting", total=tensors)

    def done() -> None:
        bar.advance(task)

    segments = []
    for number, plan in enumerate(plans, 1):
        path = folder / f"segment-{number}.gguf"
        write_segment(checkpoint, plan, path, done)
        segments.append(Segment(path.name, file_hash(path), plan.layers[0], plan.layers[-1], quantization))
    write_tail(checkpoint, first, folder / TAIL, done)
    manifest = SplitManifest(
        version=split_manifest.VERSION,
        model=name,
        fingerprint=checkpoint.fingerprint(first),
        architecture=checkpoint.config.architecture,
        layers=checkpoint.layers,
        hidden=checkpoint.config.hidden_size,
        vocab_size=checkpoint.config.vocab_size,
        exits=exits.layers,
        segments=segments,
        tail=TailManifest(TAIL, folder_hash(folder / TAIL), first, checkpoint.layers - 1),
        tokenizer=file_hash(checkpoint.tokenizer),
        temperatures=exits.temperatures,
        exits_trained=exits.sha256,
    )
    split_manifest.write_manifest(manifest, folder)
    return manifest


def partition(model: str, exits: list[int] | None, exits_file: Path | None, quantization: str, output: Path) -> None:
    """Cuts `model` into the folder `output`, which is replaced only after all pieces have been checked.

    `exits`: the numbers of layers before each exit; None: those of the file. Raises ConfigError for wrong input, and
    if a piece does not compute what the model does.
    """
    checkpoint = Checkpoint(find(model))
    if not exits:
        if not exits_file:
            raise ConfigError("give --exits, the layers before each exit, for example 2,4; or an --exits-file")
        exits = exits_of(exits_file)
    model_exits = Exits(checkpoint, exits, exits_file)
    _check_output(output)
    _check_rows(checkpoint, quantization)
    gguf_vocabulary.check(checkpoint.tokenizer, checkpoint.config.vocab_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console()) as bar:
            manifest = cut(checkpoint, model_exits, quantization, Path(model).name, folder, bar)
            task = bar.add_task("checking", total=split_check.steps(checkpoint, model_exits))
            findings = split_check.compare(checkpoint, model_exits, manifest, folder, lambda: bar.advance(task))
        console().print(split_check.as_table(findings))
        shutil.rmtree(output, ignore_errors=True)
        folder.rename(output)


def _check_output(output: Path) -> None:
    """Raises ConfigError unless `output` is free, empty or an earlier partition."""
    if output.exists() and not (output / split_manifest.NAME).is_file() and (output.is_file() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: is neither empty nor an earlier partition; name another folder")


def _check_rows(checkpoint: Checkpoint, quantization: str) -> None:
    if quantization in quantize.TYPES:
        return  # llama.cpp chooses another type for such a matrix
    block = gguf.GGML_QUANT_SIZES[QUANTIZATIONS[quantization][0]][0]
    for name, shape in checkpoint.config.layer_tensors(0).items():
        if len(shape) > 1 and shape[-1] % block:
            raise ConfigError(f"--quantize {quantization}: the rows of {name} are no multiples of {block}; use f16")


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m models.partition", description="Cut a model into edge segments with exits and a cloud tail."
    )
    parser.add_argument("--model", required=True, help="folder or Hugging Face id of a Llama or Qwen2 checkpoint")
    parser.add_argument("--exits", type=layer_list, help="layers before each exit, e.g. 2,4 (default: the file's)")
    parser.add_argument(
        "--exits-file", type=Path, help="file of `python -m models.exits` (default: the model's own head)"
    )
    parser.add_argument("--quantize", choices=[*QUANTIZATIONS, *quantize.TYPES], default="q8_0", help="(default: q8_0)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the pieces and their manifest to")
    args = parser.parse_args()
    return run_sync_program(lambda: partition(args.model, args.exits, args.exits_file, args.quantize, args.output))
