"""Compares the pieces of a split model with the whole model: do they predict the same next tokens on sample text?

Segments run on llama.cpp; the whole model and the tail are computed layer by layer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer

from common.config_edge import EdgeModelConfig
from common.errors import ConfigError
from common.protocol.split_manifest import SplitManifest
from edge.llama.segment import CHUNK, Feed
from edge.split.loading import load_segment
from models.partition.checkpoint import Checkpoint
from models.partition.exit_tensors import Exits
from models.partition.layerwise import Layerwise, next_tokens

SAMPLES = (
    "Machine learning is a way to make computers learn from examples instead of rules that people write.",
    "What is the capital of France? The capital of France is Paris. What is 12 + 30? 12 + 30 = 42.",
    "def area(width, height):\n    return width * height  # in square meters\n",
    "Sort 31, 7, 64. Sorted: 7, 31, 64. The day after 30 April is 1 May. Reverse: cloud edge model layer.",
)
"""Each fits into one step of llama.cpp in any vocabulary."""
WORDS = ("It's 12345 o'clock, isn't it? DON'T!", "two  spaces\n\nlines\t(and tabs)...\n", "naïve café 東京 🙂 x=1;")
"""Texts that tokenizers tend to split differently."""
MIN_SAME = {"f32": 0.99, "f16": 0.95, "bf16": 0.95, "q8_0": 0.8, "q6_k": 0.7}
"""The lowest share of equal next tokens of a correct piece, by quantization; 0.5 for coarser ones."""
MODEL = EdgeModelConfig(context_length=CHUNK, threads=1, sequences=1, kv_type="f32", flash_attention=False)
"""How segments are run to check them."""
CHAIN = "first segment, then tail"
"""The name of this combination in the table."""


class Finding(NamedTuple):
    """One piece, its size in bytes, and at how many positions its next token is the whole model's."""

    piece: str
    first: int
    last: int
    size: int
    same: int
    positions: int


def steps(checkpoint: Checkpoint, exits: Exits) -> int:
    """The number of times that `compare` calls `done`."""
    tail = checkpoint.layers - exits.layers[0]
    return checkpoint.layers + len(exits.layers) + 2 * tail


def compare(
    checkpoint: Checkpoint, exits: Exits, manifest: SplitManifest, folder: Path, done: Callable[[], object]
) -> list[Finding]:
    """Compares every piece in `folder`, fed the whole model's states; the last finding is CHAIN, fed the segment's own.

    Raises ConfigError if a piece predicts too few of the same tokens.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in SAMPLES]
    _check_vocabulary(folder, manifest, tokenizer)
    inputs, whole = _whole(checkpoint, exits, texts, done)
    findings, segment_states = [], []
    for number, part in enumerate(manifest.segments):
        path = folder / part.file
        tokens, states = _segment(manifest, number, folder, inputs[number] if number else texts)
        segment_states.append(states)
        findings.append(Finding(part.file, part.first, part.last, path.stat().st_size, *_same(tokens, whole[number])))
        done()
    path = folder / manifest.tail.folder
    size = sum(file.stat().st_size for file in path.iterdir())
    tail = _same(_tail(path, inputs[1], done), whole[-1])
    findings.append(Finding(manifest.tail.folder, manifest.tail.first, manifest.tail.last, size, *tail))
    _judge(findings, manifest)
    chain = _same(_tail(path, segment_states[0], done), whole[-1])
    return [*findings, Finding(CHAIN, 0, manifest.tail.last, findings[0].size + size, *chain)]


def _judge(findings: list[Finding], manifest: SplitManifest) -> None:
    segment_share = MIN_SAME.get(manifest.segments[0].quantization, 0.5)
    for piece, *_, same, positions in findings:
        if same < (MIN_SAME["f32"] if piece == manifest.tail.folder else segment_share) * positions:
            raise ConfigError(f"{piece} is cut wrongly: only {same} of {positions} next tokens are the whole model's")


def as_table(findings: list[Finding]) -> Table:
    table = Table(
        "piece", "layers", "MB", "same next token", title="Pieces compared with the whole model", title_justify="left"
    )
    for piece, first, last, size, same, positions in findings:
        table.add_row(piece, f"{first} to {last}", f"{size / 1e6:.1f}", f"{same} of {positions}")
    return table


def _whole(
    checkpoint: Checkpoint, exits: Exits, texts: list[list[int]], done: Callable[[], object]
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The whole model's input states of each segment, and its next tokens at each exit and at its end."""
    layers = Layerwise(checkpoint)
    before, tokens = [layers.embed(texts)], []
    states: list[Tensor] = []
    for after, states in enumerate(layers.states(before[0]), 1):
        if after in exits.layers:
            before.append(states)
            tokens.append(next_tokens(states, exits.logits(after)))
        done()
    return before, [*tokens, layers.next_tokens(states)]


def _tail(folder: Path, states: list[Tensor], done: Callable[[], object]) -> list[Tensor]:
    layers = Layerwise(Checkpoint(folder))
    for after in layers.states(states):
        states = after
        done()
    return layers.next_tokens(states)


def _segment(
    manifest: SplitManifest, number: int, folder: Path, inputs: list[list[int]] | list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Next tokens at the segment's exit, and the states after its last layer."""
    segment = load_segment(manifest, folder, number, MODEL)
    try:
        tokens, states = [], []
        for text in inputs:
            step = segment.decode([Feed(0, text if isinstance(text, list) else text.numpy(), len(text))])
            assert step and step.states is not None, "only an abort gives None"
            tokens.append(torch.from_numpy(step.logits.argmax(-1)))
            states.append(torch.from_numpy(step.states.copy()))
            segment.forget(0)
    finally:
        segment.free()
    return tokens, states


def _check_vocabulary(folder: Path, manifest: SplitManifest, tokenizer: Any) -> None:
    segment = load_segment(manifest, folder, 0, MODEL)
    try:
        for text in (*SAMPLES, *WORDS):
            if segment.vocabulary.tokenize(text.encode(), False, True) != tokenizer.encode(
                text, add_special_tokens=False
            ):
                raise ConfigError(f"llama.cpp splits {text!r} into other tokens than the model's own tokenizer")
    finally:
        segment.free()


def _same(found: list[Tensor], wanted: list[Tensor]) -> tuple[int, int]:
    equal = torch.cat(found) == torch.cat(wanted)
    return int(equal.sum()), len(equal)
