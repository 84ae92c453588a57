"""Records what the exits of a model predict at each token of its own answers to held-out questions.

    python -m models.exits.record --model FOLDER|HUB-ID [--exits 8,16] [--exits-file FILE] [--data FILE.jsonl|FILE.txt]
                                  [--questions N] [--max-tokens N] [--given-answers] --output FILE.npz

The model answers greedily; then one pass, a layer at a time, computes all positions of all answers. Positions of given
answers (or of a text) need that pass only. `python -m experiments.split.exit_confidence` compares measures on the file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, track
from torch import Tensor
from transformers import AutoTokenizer

from calibration import data
from calibration.split import records
from calibration.split.records import ExitRecords, RecordedModel
from cli.args import count, run_sync_program
from cli.terminal import console
from common.errors import ConfigError
from models import heldout
from models.demo import CLOUD, EXITS
from models.exits import texts as exit_texts
from models.exits.early_exit import FrozenStates
from models.exits.layerwise_states import LayerwiseStates
from models.exits.own_answers import OwnAnswers
from models.exits.texts import TokenizedText
from models.partition.checkpoint import Checkpoint, find
from models.partition.exit_tensors import Exits, exits_of, layer_list

MAX_TOKENS = 160
ROWS = 64
"""Positions whose logits are computed together."""
DEMO = "held-out questions of the demo corpus"


def prompts_of(path: Path | None, tokenizer: Any, most: int | None) -> list[list[int]]:
    """The questions in the model's chat template; of the demo corpus those that no temperature was fitted on."""
    pairs = data.read(path) if path else [data.CalibrationQuestion(prompt) for _, prompt, _ in heldout.pairs()[1::2]]
    return [exit_texts.question(tokenizer, pair.prompt) for pair in spread(pairs, most)]


def spread(items: Sequence[Any], most: int | None) -> list[Any]:
    """At most so many, evenly over the whole sequence: files are often sorted by kind."""
    if most is None or most >= len(items):
        return list(items)
    return [items[int(at)] for at in np.linspace(0, len(items) - 1, most).round()]


def answered(checkpoint: Checkpoint, prompts: list[list[int]], limit: int) -> list[TokenizedText]:
    """The prompts with the model's own greedy answers of at most `limit` tokens."""
    with Progress(console=console()) as bar:
        task = bar.add_task("answers of the model", total=len(prompts))
        return OwnAnswers(checkpoint, limit)(prompts, lambda count: bar.advance(task, count))


def record(checkpoint: Checkpoint, exits: Exits, texts: list[TokenizedText]) -> ExitRecords:
    """One pass over all texts, the short ones first; `question` is the number of each among `texts`."""
    order = sorted(range(len(texts)), key=lambda at: len(texts[at].ids))
    states = LayerwiseStates(checkpoint, exits.layers, "cpu", torch.float32)([texts[at] for at in order])
    assert states.likeliest is not None
    logits = [exits.logits(exit) for exit in exits.layers]
    parts = []
    for rows in track(torch.arange(len(states.last)).split(ROWS), "exits", console=console()):
        part = states.at(rows)
        with torch.inference_mode():
            each = [
                (of(at).double() / temperature).log_softmax(-1)
                for of, at, temperature in zip(logits, part.exits, exits.temperatures, strict=True)
            ]
            parts.append(readings(each, part))
    positions = [len(texts[at].ids) - 1 - texts[at].first for at in order]
    token, *rest = (torch.cat(values, dim=1).numpy() for values in zip(*parts, strict=True))
    right = states.likeliest[:, 0].long().numpy()
    return ExitRecords(np.repeat(order, positions), right, token, *rest)


def readings(log_probs: list[Tensor], states: FrozenStates) -> tuple[Tensor, ...]:
    """The arrays [E, n] of ExitRecords, from `token` on, of n positions; `log_probs`: [n, V] of each exit."""
    best = [each.topk(2) for each in log_probs]
    entropy = [-(each.exp() * each.clamp(min=-700)).sum(-1) for each in log_probs]
    none = torch.zeros(len(states.last), dtype=torch.double)
    overlap, saturation = [none], [none]
    for before, after, state, later in zip(log_probs, log_probs[1:], states.exits, states.exits[1:], strict=False):
        overlap.append(torch.minimum(before, after).exp().sum(-1))
        saturation.append(torch.nn.functional.cosine_similarity(state.double(), later.double(), dim=-1))
    found = [
        [each.indices[:, 0] for each in best],
        [each.values[:, 0].exp() for each in best],
        [each.values[:, 1].exp() for each in best],
        entropy,
        overlap,
        saturation,
    ]
    return tuple(map(torch.stack, found))


def main() -> int:
    parser = argparse.ArgumentParser("python -m models.exits.record", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=str(CLOUD), help="folder or hub id of a checkpoint (default: the demo's)")
    parser.add_argument("--exits", type=layer_list, help="layers before each exit (default: all of the exits file)")
    parser.add_argument(
        "--exits-file", type=Path, help="trained exits (default: the demo's for its model, else the model's own head)"
    )
    parser.add_argument(
        "--data", type=Path, help="questions (.jsonl) or text (.txt) (default for the demo: held-out questions)"
    )
    parser.add_argument("--questions", type=count, metavar="N", help="at most so many, evenly over the file")
    parser.add_argument(
        "--max-tokens", type=count, default=MAX_TOKENS, help="longest answer, in tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--given-answers", action="store_true", help="go along the file's answers, as along text; nothing is generated"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.npz")
    args = parser.parse_args()
    return run_sync_program(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Raises ConfigError, before anything is computed, for wrong input."""
    checkpoint = Checkpoint(find(args.model))
    demo = checkpoint.folder.resolve() == CLOUD.resolve()
    if args.data is None and not demo:
        raise ConfigError("--data: give questions of your own; those of the demo corpus are for the demo model")
    if not args.output.parent.is_dir():
        raise ConfigError(f"--output {args.output}: no such folder")
    path = args.exits_file or (EXITS if demo and args.exits is None else None)
    layers = args.exits or (exits_of(path) if path else None)
    if layers is None:
        raise ConfigError("--exits: name the layers, or give an --exits-file")
    exits = Exits(checkpoint, layers, path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    given = args.given_answers or (args.data is not None and args.data.suffix == ".txt")
    if given:
        if args.data is None:
            raise ConfigError("--given-answers: give them in --data")
        longest = checkpoint.config.context
        texts = spread(exit_texts.every(args.data, tokenizer, longest), args.questions)
    else:
        texts = answered(checkpoint, prompts_of(args.data, tokenizer, args.questions), args.max_tokens)
    found = record(checkpoint, exits, texts)
    about = RecordedModel(
        str(args.model),
        checkpoint.layers,
        checkpoint.config.vocab_size,
        layers,
        str(path or ""),
        str(args.data or DEMO),
        not given,
    )
    records.write(args.output, about, found)
    shares = ", ".join(f"exit {exit} {share:.4f}" for exit, share in zip(layers, found.agrees.mean(-1), strict=True))
    console().print(f"{len(found.right)} tokens of {found.questions} answers; the whole model's token: {shares}")
    console().print(f"wrote {args.output}")


if __name__ == "__main__":
    sys.exit(main())
