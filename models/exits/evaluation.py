"""Measures the demo model's exits on held-out questions: what they know, and what they would save a cloud.

    python -m models.exits.evaluation [--exits-file FILE] [--write]

Along the whole model's own greedy answers: a token is taken at the first exit that is sure enough of it, else from the
cloud, which then computes its layers for every position so far that it has not yet. Knows no engine and no network.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from cli.terminal import console
from models import heldout
from models.partition.checkpoint import Checkpoint
from models.partition.exit_tensors import Exits, exits_of
from models.train.export import CLOUD, EXITS, MODELS
from models.train.tokenizer import PAIR

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.01)
MAX_TOKENS = 160
README = MODELS / "README.md"
MARKS = "<!-- evaluation of exits -->\n", "<!-- end of evaluation -->\n"


class ExitTrace(NamedTuple):
    """The whole model's greedy answer, and what each exit says at each of its tokens."""

    prompt: int
    """Tokens."""
    right: bool
    confidence: NDArray[np.float64]
    """[exits, n]"""
    agrees: NDArray[np.bool_]
    """Whether the exit's token is the whole model's, [exits, n]."""


class ThresholdResult(NamedTuple):
    """What a threshold comes to; all are shares, of answer tokens, of answers, or of the whole model's layer-tokens."""

    taken: list[float]
    asked_tokens: float
    asked_answers: float
    exact_match: float
    cloud_work: float


def outcome(answers: Sequence[ExitTrace], threshold: float, layers: int, first: int) -> ThresholdResult:
    """What comes of a threshold for a model with so many `layers`, of which the cloud has those from `first` on.

    An answer with a token that is not the whole model's counts as wrong. A last token is never computed with.
    """
    taken = np.zeros(len(answers[0].confidence))
    asked = asking = right = work = positions = 0
    for prompt, is_right, confidence, agrees in answers:
        sure = confidence >= threshold
        by = np.where(sure.any(axis=0), sure.argmax(axis=0), -1)
        taken += [(by == exit).sum() for exit in range(len(taken))]
        unsure = np.flatnonzero(by < 0)
        kept = agrees[by, np.arange(len(by))] | (by < 0)
        right += is_right and bool(kept.all())
        asked += len(unsure)
        asking += len(unsure) > 0
        work += prompt + int(unsure[-1]) if len(unsure) else 0
        positions += prompt + len(by) - 1
    tokens = sum(answer.agrees.shape[1] for answer in answers)
    share = work * (layers - first) / (positions * layers)
    return ThresholdResult(list(taken / tokens), asked / tokens, asking / len(answers), right / len(answers), share)


class Said(NamedTuple):
    """A greedy answer with its end, and of each of its tokens each exit's likeliest and how sure it is of that."""

    tokens: list[int]
    likeliest: list[Tensor]
    confidence: list[Tensor]


def greedy(model: torch.nn.Module, exits: Exits, prompts: list[list[int]]) -> list[Said]:
    """What the whole model and its exits say to each prompt; prompts of one length are answered together."""
    heads = exits.heads()
    said = [Said([], [], []) for _ in prompts]
    by_length = defaultdict(list)
    for number, prompt in enumerate(prompts):
        by_length[len(prompt)].append(number)
    for numbers in track(by_length.values(), "the model and its exits"):
        ids, past = torch.tensor([prompts[number] for number in numbers]), None
        for _ in range(MAX_TOKENS):
            with torch.no_grad():
                out = model(ids, past_key_values=past, use_cache=True, logits_to_keep=1, output_hidden_states=True)
                states = [out.hidden_states[exit][:, -1] for exit in exits.layers]
                found = [head(at).max(-1) for head, at in zip(heads, states, strict=True)]
            ids, past = out.logits.argmax(-1), out.past_key_values
            for row, number in enumerate(numbers):
                said[number].tokens.append(int(ids[row, 0]))
                said[number].likeliest.append(torch.stack([each.indices[row] for each in found]))
                said[number].confidence.append(torch.stack([each.values[row] for each in found]))
            going_on = [row for row in range(len(numbers)) if ids[row, 0] != 0]
            if not going_on:
                break
            if len(going_on) < len(numbers):
                numbers, ids = [numbers[row] for row in going_on], ids[going_on]
                past.batch_select_indices(torch.tensor(going_on))
    return said


def evaluate(path: Path) -> str:
    """The tables in Markdown."""
    disable_progress_bar()
    checkpoint = Checkpoint(CLOUD)
    exits = Exits(checkpoint, exits_of(path), path)
    tokenizer = AutoTokenizer.from_pretrained(CLOUD)
    model = AutoModelForCausalLM.from_pretrained(CLOUD, dtype=torch.float32).eval()
    questions = heldout.pairs()[1::2]
    prompts = [tokenizer.encode(PAIR.question.format(prompt)) for _, prompt, _ in questions]
    answers = []
    for prompt, said, (_, _, answer) in zip(prompts, greedy(model, exits, prompts), questions, strict=True):
        agrees = torch.stack(said.likeliest) == torch.tensor(said.tokens)[:, None]
        right = tokenizer.decode(said.tokens[:-1]) == answer
        answers.append(ExitTrace(len(prompt), right, torch.stack(said.confidence).double().numpy().T, agrees.numpy().T))
    return tables(answers, exits, checkpoint.layers)


def tables(answers: list[ExitTrace], exits: Exits, layers: int) -> str:
    lines = [
        "| exit after | temperature | same token as the whole model | wrong, though sure (0.8) |",
        "|---|---|---|---|",
    ]
    agrees = np.concatenate([answer.agrees for answer in answers], axis=1)
    sure = np.concatenate([answer.confidence for answer in answers], axis=1) >= 0.8
    for exit, temperature, same, certain in zip(exits.layers, exits.temperatures, agrees, sure, strict=True):
        wrong = (~same & certain).sum() / certain.sum()
        lines.append(f"| {exit} layers | {temperature:.2f} | {same.mean():.4f} | {wrong:.4f} |")
    heads = "".join(f" exit {exit} |" for exit in exits.layers)
    lines += ["", f"| threshold |{heads} cloud | answers that ask | exact match | cloud layer-tokens saved |"]
    lines.append("|---|---|---|---|---|" + "---|" * len(exits.layers))
    for threshold in THRESHOLDS:
        got = outcome(answers, threshold, layers, exits.layers[0])
        taken = "".join(f" {share:.3f} |" for share in got.taken)
        name = f"{threshold:g}" if threshold <= 1 else "above 1"
        lines.append(
            f"| {name} |{taken} {got.asked_tokens:.3f} | {got.asked_answers:.3f} | {got.exact_match:.3f} "
            f"| {1 - got.cloud_work:.3f} |"
        )
    return "\n".join(lines) + "\n"


def write(table: str, path: Path = README) -> None:
    """Puts the tables between their marks in models/README.md."""
    before, _, rest = path.read_text().partition(MARKS[0])
    path.write_text(before + MARKS[0] + table + MARKS[1] + rest.partition(MARKS[1])[2])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo model's exits on held-out questions.")
    parser.add_argument("--exits-file", type=Path, default=EXITS, help="the exits (the committed ones)")
    parser.add_argument("--write", action="store_true", help="put the tables into models/README.md")
    args = parser.parse_args()
    table = evaluate(args.exits_file)
    console().print(table)
    if args.write:
        write(table)


if __name__ == "__main__":
    main()
