"""Evaluates the demo model's exits on held-out questions: their accuracy, and the cloud work that they save.

    python -m models.exits.evaluation [--exits-file FILE] [--write]

Simulated along the whole model's greedy answers: a token is taken at the first exit whose confidence reaches the
threshold, else from the cloud, which then computes its layers for all pending positions.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import AutoTokenizer

from calibration.split.simulation import ExitTrace, replay, simulate
from cli.args import run_sync_program
from cli.terminal import console
from models import heldout
from models.demo import CLOUD, EXITS, write_tables
from models.exits import record
from models.partition.checkpoint import Checkpoint
from models.partition.exit_tensors import Exits, exits_of
from models.train.tokenizer import PAIR

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.01)


class ThresholdResult(NamedTuple):
    """The effect of a threshold; all values are shares, 0 to 1."""

    taken: list[float]
    """Of answer tokens, for each exit."""
    cloud_tokens: float
    """Of answer tokens: those from the cloud."""
    cloud_answers: float
    """Of answers: those with a token from the cloud."""
    exact_match: float
    """Of answers: those that are right."""
    cloud_work: float
    """Of the whole model's layer-tokens: those that the cloud computes."""


def apply_threshold(answers: Sequence[ExitTrace], threshold: float, layers: int, first: int) -> ThresholdResult:
    """The effect of a threshold on a model of `layers` layers, of which the cloud has those from `first` on.

    An answer with a token that is not the whole model's counts as wrong. The last token needs no computation.
    """
    same = [threshold] * len(answers[0].agrees)
    replayed = [replay(answer, same) for answer in answers]
    found = simulate(answers, [same], (layers - first) / layers)[0]
    tokens = sum(answer.tokens for answer in answers)
    return ThresholdResult(
        taken=(np.sum([each.taken for each in replayed], axis=0) / tokens).tolist(),
        cloud_tokens=float(found.cloud_rate),
        cloud_answers=float((found.cloud_tokens > 0).mean()),
        exact_match=float(found.worth.mean()),
        cloud_work=float(found.cloud_work),
    )


def evaluate(path: Path) -> str:
    """The evaluation's tables in Markdown."""
    checkpoint = Checkpoint(CLOUD)
    exits = Exits(checkpoint, exits_of(path), path)
    tokenizer = AutoTokenizer.from_pretrained(CLOUD)
    questions = heldout.pairs()[1::2]
    prompts = [tokenizer.encode(PAIR.question.format(prompt)) for _, prompt, _ in questions]
    replies = record.answered(checkpoint, prompts, record.MAX_TOKENS)
    found = record.record(checkpoint, exits, replies)
    answers = []
    for number, (reply, (_, _, answer)) in enumerate(zip(replies, questions, strict=True)):
        own, begin = found.question == number, reply.first + 1
        right = tokenizer.decode(reply.ids[begin:-1]) == answer
        answers.append(ExitTrace(begin, right, found.top[:, own], found.agrees[:, own]))
    return tables(answers, exits, checkpoint.layers)


def tables(answers: list[ExitTrace], exits: Exits, layers: int) -> str:
    lines = [
        "| exit after | temperature | same token as the whole model | wrong at a confidence of 0.8 or more |",
        "|---|---|---|---|",
    ]
    agrees = np.concatenate([answer.agrees for answer in answers], axis=1)
    confident = np.concatenate([answer.confidence for answer in answers], axis=1) >= 0.8
    for exit, temperature, same, certain in zip(exits.layers, exits.temperatures, agrees, confident, strict=True):
        wrong = (~same & certain).sum() / certain.sum()
        lines.append(f"| {exit} layers | {temperature:.2f} | {same.mean():.4f} | {wrong:.4f} |")
    heads = "".join(f" exit {exit} |" for exit in exits.layers)
    lines += [
        "",
        f"| threshold |{heads} cloud | answers that need the cloud | exact match | cloud layer-tokens saved |",
    ]
    lines.append("|---|---|---|---|---|" + "---|" * len(exits.layers))
    for threshold in THRESHOLDS:
        result = apply_threshold(answers, threshold, layers, exits.layers[0])
        taken = "".join(f" {share:.3f} |" for share in result.taken)
        name = f"{threshold:g}" if threshold <= 1 else "above 1"
        lines.append(
            f"| {name} |{taken} {result.cloud_tokens:.3f} | {result.cloud_answers:.3f} | {result.exact_match:.3f} "
            f"| {1 - result.cloud_work:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m models.exits.evaluation", description="Evaluate the demo model's exits on held-out questions."
    )
    parser.add_argument(
        "--exits-file", type=Path, default=EXITS, metavar="FILE", help="the exits (default: %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="write the tables into models/README.md, too")
    args = parser.parse_args()
    return run_sync_program(lambda: report(args.exits_file, args.write))


def report(exits_file: Path, write: bool) -> None:
    found = evaluate(exits_file)
    console().print(found)
    if write:
        write_tables("exits", found)


if __name__ == "__main__":
    sys.exit(main())
