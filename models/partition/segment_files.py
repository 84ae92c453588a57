"""Writes the edge segments of a model as GGUF files, and what they share: the embeddings and the model's head.

To llama.cpp a segment without a head of its own is the first part of a model in two files, the shared one the second.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import gguf
from gguf.constants import Keys

from edge.llama import quantize
from models.partition import gguf_export, gguf_vocabulary
from models.partition.checkpoint import EMBEDDING, Checkpoint
from models.partition.exit_tensors import Exits
from models.partition.gguf_export import Step, TensorEntry

PARTS = 2
"""Files of a model that is split: the segment's own and the shared one."""


@dataclass(frozen=True)
class SegmentPlan:
    """One segment to write: its tensors, its layers in the whole model, and its name."""

    entries: list[TensorEntry]
    layers: range
    title: str
    shares_head: bool


def plan_segment(checkpoint: Checkpoint, exits: Exits, number: int, name: str) -> SegmentPlan:
    """Edge segment `number`, counted from 0, of the model `name`."""
    exit, begin = exits.layers[number], exits.layers[number - 1] if number else 0
    layers, hidden = range(begin, exit), checkpoint.config.hidden_size
    shares_head = not exits.has_head(exit)
    entries = [] if shares_head else _own_head(checkpoint, exits, number)
    entries.append(TensorEntry("output_norm.weight", (hidden,), lambda: exits.norm(exit).float().numpy()))
    entries += gguf_export.rope_entries(checkpoint) + gguf_export.layer_entries(checkpoint, layers)
    return SegmentPlan(entries, layers, f"{name}, layers {begin} to {exit - 1}", shares_head)


def _own_head(checkpoint: Checkpoint, exits: Exits, number: int) -> list[TensorEntry]:
    """llama.cpp requires embeddings in every model, and uses them as the head if there is no other.

    A later segment embeds nothing, so it has its exit's head in their place.
    """
    exit = exits.layers[number]
    shape = (checkpoint.config.vocab_size, checkpoint.config.hidden_size)
    head = TensorEntry("output.weight", shape, lambda: exits.head(exit).float().numpy())
    embedding = TensorEntry("token_embd.weight", shape, lambda: checkpoint.tensor(EMBEDDING).float().numpy())
    return [head._replace(name="token_embd.weight")] if number else [embedding, head]


class SegmentWriter:
    """Writes the segments of `checkpoint`, quantized; `shared`: where what they share is written, when it is needed.

    `done` is called after each tensor of the checkpoint that was written.
    """

    def __init__(self, checkpoint: Checkpoint, quantization: str, shared: Path, done: Step) -> None:
        self._checkpoint = checkpoint
        self._quantization = quantization
        self._shared = shared
        self._done = done

    def write(self, plan: SegmentPlan, path: Path) -> None:
        """Writes one segment; the first one gets the vocabulary."""
        if self._quantization not in quantize.TYPES:
            self._write_segment(plan, path, self._quantization)
            if plan.shares_head and not self._shared.exists():
                self._write_shared(self._shared, self._quantization)
            return
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source, target = (
                [Path(folder) / f"{name}-{part:05}-of-{PARTS:05}.gguf" for part in range(1, PARTS + 1)]
                for name in ("f32", "made")
            )
            self._write_segment(plan, source[0], "f32")
            if plan.shares_head:
                self._write_shared(source[1], "f32")
                quantize.quantize(source[0], Path(folder) / "made", self._quantization, keep_parts=True)
                target[1].rename(self._shared)
            else:
                quantize.quantize(source[0], target[0], self._quantization)
            target[0].rename(path)

    def _write_segment(self, plan: SegmentPlan, path: Path, kind: str) -> None:
        config = self._checkpoint.config
        writer = gguf.GGUFWriter(None, config.architecture)
        writer.add_name(plan.title)
        gguf_export.add_shape(writer, config, plan.layers, kind)
        if plan.layers.start == 0:
            gguf_vocabulary.add(writer, self._checkpoint.tokenizer, config.vocab_size)
        else:
            writer.add_tokenizer_model("no_vocab")
        if plan.shares_head:
            _mark_part(writer, 0)
            tensors = len(plan.entries) + len(gguf_export.vocabulary_entries(self._checkpoint))
            writer.add_int32(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, tensors)
        gguf_export.write(writer, path, plan.entries, kind, self._done)

    def _write_shared(self, path: Path, kind: str) -> None:
        writer = gguf.GGUFWriter(None, self._checkpoint.config.architecture)
        _mark_part(writer, 1)
        gguf_export.write(writer, path, gguf_export.vocabulary_entries(self._checkpoint), kind)


def _mark_part(writer: gguf.GGUFWriter, part: int) -> None:
    writer.add_uint16(Keys.Split.LLM_KV_SPLIT_NO, part)
    writer.add_uint16(Keys.Split.LLM_KV_SPLIT_COUNT, PARTS)
