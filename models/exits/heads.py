"""The command that trains the exits of a model, fits their temperatures and writes them to a file.

    python -m models.exits --model FOLDER|HUB-ID --exits 2,4 [--data FILE.jsonl|FILE.txt ...] [--form translator|head]
                           --output FILE.safetensors

The model does not change. Its answers to questions without one and its hidden states are computed once and kept, with
checkpoints of the training, in a folder beside the output; an interrupted training continues from there.
"""

import argparse
import hashlib
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import msgspec
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from cli.args import count, run_sync_program
from cli.terminal import console
from common.errors import ConfigError
from common.protocol.split_manifest import exits_fault
from models.exits import texts as exit_texts
from models.exits import training as exit_training
from models.exits.early_exit import (
    EarlyExitHead,
    EarlyExitLLM,
    TrainableExits,
    train_early_exit_heads,
    validation_losses,
)
from models.exits.layerwise_states import LayerwiseStates
from models.exits.own_answers import OwnAnswers
from models.exits.states import Compute, StateFiles, compute
from models.exits.temperatures import Fit, as_table, fit_temperatures
from models.exits.texts import TokenizedText
from models.exits.training import ExitRecipe, TrainingProgress
from models.exits.translators import AffineTranslator, TranslatedExits
from models.partition.checkpoint import Checkpoint, find
from models.partition.exit_tensors import (
    WEIGHTS,
    confident_name,
    head_name,
    layer_list,
    norm_name,
    temperature_name,
    translator_names,
)

__all__ = ["EarlyExitHead", "EarlyExitLLM", "train_early_exit_heads"]

TRANSLATOR, HEAD = "translator", "head"
"""The forms of exits."""
RATES = {TRANSLATOR: 1e-4, HEAD: 5e-4}
LONGEST = 1024
"""Tokens of a text; the rest is cut."""


def load_model(checkpoint: Checkpoint, exits: list[int]) -> EarlyExitLLM:
    """The model on the GPU if there is one, else on the CPU in float32, which is faster there."""
    disable_progress_bar()
    gpu = torch.cuda.is_available()
    dtype = "auto" if gpu else torch.float32
    base = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, use_safetensors=True)
    return EarlyExitLLM(base, exits).to("cuda" if gpu else "cpu")


def untrained(checkpoint: Checkpoint, exits: list[int], form: str) -> tuple[EarlyExitLLM | TranslatedExits, Compute]:
    """The exits in their first state, and what computes the states that they learn from."""
    if form == HEAD:
        model = load_model(checkpoint, exits)
        return model, partial(compute, model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TranslatedExits(checkpoint, exits).to(device), LayerwiseStates(checkpoint, exits, device)


def write_exits(model: EarlyExitLLM | TranslatedExits, fits: list[Fit], path: Path, weights_hash: str) -> None:
    """Writes the exits in the format of models/partition/exit_tensors.py: heads in bf16, all else in float32."""
    tensors: dict[str, Tensor] = {}
    for (exit, head), fit in zip(model.exit_heads.items(), fits, strict=True):
        if isinstance(head, AffineTranslator):
            found: Iterable[tuple[str, Tensor]] = zip(translator_names(int(exit)), head.folded(), strict=True)
        else:
            found = (norm_name(int(exit)), head.norm.bfloat16()), (head_name(int(exit)), head.head.bfloat16())
        tensors |= {name: tensor.detach().cpu().contiguous() for name, tensor in found}
        tensors[temperature_name(int(exit))] = torch.tensor([fit.temperature])
        tensors[confident_name(int(exit))] = torch.tensor([fit.confident])
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, {WEIGHTS: weights_hash})
    unfinished.rename(path)


def work_folder(
    output: Path, checkpoint: Checkpoint, exits: list[int], form: str, texts: list[TokenizedText], recipe: ExitRecipe
) -> Path:
    """The folder of this training: its name is a hash of the model, the exits, the texts and the settings."""
    settings = [checkpoint.weights_hash, exits, form, texts, asdict(recipe)]
    key = hashlib.sha256(msgspec.json.encode(settings)).hexdigest()
    return output.with_suffix(".training") / key[:16]


class Screen:
    """Shows a training on the terminal: a progress bar, and one line per epoch."""

    def __init__(self, bar: Bar, model: TrainableExits, validation: StateFiles, positions: int) -> None:
        self._bar, self._model, self._validation, self._positions = bar, model, validation, positions
        self._task = bar.add_task("training")
        self._smooth: list[float] = []
        self._began = time.perf_counter()

    def show(self, progress: TrainingProgress) -> None:
        self._bar.update(self._task, completed=progress.step, total=progress.steps)
        before = self._smooth or progress.losses
        self._smooth = [old + (new - old) / 50 for old, new in zip(before, progress.losses, strict=True)]
        if progress.epoch_ended:
            losses = validation_losses(self._model, self._validation.batches(self._positions))
            means = [f"{loss:.4f}" for loss in self._smooth] or ["-"] * len(losses)
            words = [
                f"exit {exit} {mean} ({loss:.4f})"
                for exit, mean, loss in zip(self._model.early_exit_layers, means, losses, strict=True)
            ]
            minutes = (time.perf_counter() - self._began) / 60
            self._bar.console.print(f"epoch {progress.epoch}, {minutes:.1f} min, loss (validation): {', '.join(words)}")


def read_texts(
    files: list[Path], checkpoint: Checkpoint, longest: int, own: OwnAnswers, bar: Bar
) -> tuple[list[TokenizedText], list[TokenizedText]]:
    """The texts of all files to train on, and to validate with; without a file, those of the demo corpus."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    if not files:
        return exit_texts.demo(tokenizer)

    def answer(prompts: list[list[int]]) -> list[TokenizedText]:
        task = bar.add_task("answers of the model", total=len(prompts), visible=bool(prompts))
        return own(prompts, lambda count: bar.advance(task, count))

    parts = [exit_texts.read(path, tokenizer, longest, answer) for path in files]
    return [text for part, _ in parts for text in part], [text for _, part in parts for text in part]


def train(model: str, exits: list[int], files: list[Path], form: str, recipe: ExitRecipe, output: Path) -> None:
    """Trains, fits and writes the exits. Raises ConfigError, before anything is computed, for wrong input."""
    checkpoint = Checkpoint(find(model))
    if fault := exits_fault(exits, checkpoint.layers):
        raise ConfigError(f"--exits: {fault}")
    longest = min(LONGEST, checkpoint.config.context)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=console()) as bar:
        own = OwnAnswers(checkpoint, recipe.answer_tokens, output.with_suffix(".training"))
        texts, held_out = read_texts(files, checkpoint, longest, own, bar)
        split, compute_states = untrained(checkpoint, exits, form)
        torch.manual_seed(recipe.seed)
        folder = work_folder(output, checkpoint, exits, form, [*texts, *held_out], recipe)
        task = bar.add_task("states of texts", total=len(texts) + len(held_out))
        training, validation = (
            StateFiles(folder / name, compute_states, part, lambda count: bar.advance(task, count))
            for name, part in (("training", texts), ("validation", held_out))
        )
        if isinstance(split, TranslatedExits):
            split.fit(training.batches(recipe.positions))
        screen = Screen(bar, split, validation, recipe.positions)
        exit_training.train(split, training, recipe, folder, screen.show)
        task = bar.add_task("temperatures", total=2 * len(exits))
        fits = fit_temperatures(split.cpu(), validation.batches(recipe.positions), lambda: bar.advance(task))
    console().print(as_table(exits, fits))
    write_exits(split, fits, output, checkpoint.weights_hash)
    console().print(f"wrote {output}; you can delete {output.with_suffix('.training')}")


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m models.exits", description="Train early exits of a model; the model itself does not change."
    )
    parser.add_argument("--model", required=True, help="folder or Hugging Face id of a checkpoint")
    parser.add_argument("--exits", type=layer_list, required=True, help="numbers of layers before each exit, e.g. 2,4")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="questions (.jsonl; the model itself gives missing answers) or text (.txt) (default: the demo corpus)",
    )
    parser.add_argument(
        "--answer-tokens",
        type=count,
        default=ExitRecipe.answer_tokens,
        help="longest answer of the model itself (default: %(default)s)",
    )
    parser.add_argument(
        "--form",
        choices=(TRANSLATOR, HEAD),
        default=TRANSLATOR,
        help="an affine map before the model's own head, or a head for each exit (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=count, default=ExitRecipe.epochs, help="passes over the data (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, help=f"first learning rate (default: {RATES[TRANSLATOR]:g}, for heads {RATES[HEAD]:g})"
    )
    parser.add_argument(
        "--positions", type=count, default=ExitRecipe.positions, help="tokens per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=ExitRecipe.seed, help="seed of the order of batches (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write the exits to")
    args = parser.parse_args()
    recipe = ExitRecipe(args.epochs, args.rate or RATES[args.form], args.positions, args.seed, args.answer_tokens)
    return run_sync_program(lambda: train(args.model, args.exits, args.data, args.form, recipe, args.output))
