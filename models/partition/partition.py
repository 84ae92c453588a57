"""Cuts a checkpoint into edge segments, each with an exit at its end, and a cloud tail.

    python -m models.partition --model FOLDER|HUB-ID --exits 2,4 [--exits-file FILE.safetensors]
                               [--quantize f32|f16|bf16|q8_0|q4_k_m|...] --output FOLDER
    python -m models.partition --model FOLDER|HUB-ID --plan ...        where to cut: see plan_command.py

Reads and writes one tensor at a time. Segments are GGUF models: the first takes token ids, a later one the hidden
states of the segment before. The tail is a checkpoint for vLLM that takes the hidden states of the first segment.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cli.args import plain_parser, run_sync_program
from cli.terminal import console
from common.errors import ConfigError
from common.files.installation import shipped
from common.protocol import split_manifest
from common.protocol.split_manifest import (
    NamedFile,
    Segment,
    SplitManifest,
    TailManifest,
    file_hash,
    folder_hash,
    named_file,
)
from edge.llama import quantize
from models.partition import check as split_check
from models.partition import gguf_vocabulary, plan_command
from models.partition.checkpoint import Checkpoint, find
from models.partition.exit_tensors import Exits, exits_of, layer_list
from models.partition.gguf_export import QUANTIZATIONS
from models.partition.layer_tensors import layer_tensors
from models.partition.segment_files import SegmentWriter, plan_segment
from models.partition.tail import write_tail

TAIL, SHARED = "tail", "vocabulary.gguf"


def cut(
    checkpoint: Checkpoint, exits: Exits, quantization: str, name: str, folder: Path, bar: Progress
) -> SplitManifest:
    """Writes all pieces and their manifest into `folder`; progress goes to `bar`."""
    plans = [plan_segment(checkpoint, exits, number, name) for number in range(len(exits.layers))]
    first = exits.layers[0]
    tensors = sum(len(plan.entries) for plan in plans) + len(checkpoint.names(range(first, checkpoint.layers)))
    task = bar.add_task("cutting", total=tensors)

    def done() -> None:
        bar.advance(task)

    writer, segments = SegmentWriter(checkpoint, quantization, folder / SHARED, done), []
    for number, (plan, exit) in enumerate(zip(plans, exits.layers, strict=True), 1):
        path = folder / f"segment-{number}.gguf"
        writer.write(plan, path)
        segments.append(
            Segment(
                file=path.name,
                sha256=file_hash(path),
                first=plan.layers[0],
                last=plan.layers[-1],
                quantization=quantization,
                shares_head=plan.shares_head,
                translator=_write_translator(exits, exit, folder / f"translator-{number}.npy"),
            )
        )
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
        shared=named_file(folder / SHARED) if (folder / SHARED).exists() else None,
    )
    split_manifest.write_manifest(manifest, folder)
    return manifest


def _write_translator(exits: Exits, exit: int, path: Path) -> NamedFile | None:
    """Writes what edge/split/translator.py reads: weight transposed, then bias, as one matrix [H + 1, H]."""
    if (translator := exits.translator(exit)) is None:
        return None
    np.save(path, torch.cat([translator.weight.T, translator.bias[None]]).float().numpy(), allow_pickle=False)
    return named_file(path)


def partition(model: str, exits: list[int] | None, exits_file: Path | None, quantization: str, output: Path) -> None:
    """Cuts `model` into the folder `output`, which is replaced only after all pieces have been checked.

    `exits`: the numbers of layers before each exit, all of them in the file if there is one; None: those of the file.
    Raises ConfigError for wrong input, and if a piece does not compute what the model does.
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
    for name, tensor in layer_tensors(checkpoint.config).items():
        if len(tensor.shape) > 1 and tensor.shape[-1] % block:
            raise ConfigError(f"--quantize {quantization}: the rows of {name} are no multiples of {block}; use f16")


def parser() -> argparse.ArgumentParser:
    options = plain_parser("Cut a model into edge segments with exits and a cloud tail.")
    options.add_argument("--model", required=True, help="folder or Hugging Face id of a checkpoint")
    options.add_argument("--exits", type=layer_list, help="layers before each exit, e.g. 2,4 (default: the file's)")
    options.add_argument(
        "--exits-file", type=shipped, help="file of `python -m models.exits` (default: the model's own head)"
    )
    options.add_argument(
        "--quantize", choices=[*QUANTIZATIONS, *quantize.TYPES], default="q8_0", help="(default: q8_0)"
    )
    options.add_argument("--output", type=Path, help="folder to write the pieces and their manifest to")
    plan_command.add_options(options)
    return options


def run(args: argparse.Namespace) -> int:
    return run_sync_program(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    if args.plan:
        plan_command.run_plan(args)
        return
    if not args.output:
        raise ConfigError("give --output, the folder to write the pieces to; or --plan")
    partition(args.model, args.exits, args.exits_file, args.quantize, args.output)
