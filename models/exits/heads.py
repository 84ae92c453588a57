"""The command that trains the exits of a model, fits their temperatures and writes them to a file.

    python -m models.exits --model FOLDER|HUB-ID --exits 2,4 [--data FILE.jsonl|FILE.txt] --output FILE.safetensors

The model does not change. Its hidden states are computed once and kept, with checkpoints of the training, in a folder
beside the output; an interrupted training continues from there.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from calibration.temperature import COARSE, FINE, ROWS, Calibration
from cli.args import count, run_sync_program
from cli.terminal import console
from common.errors import ConfigError
from common.protocol.split_manifest import exits_fault, file_hash
from models.exits import texts as exit_texts
from models.exits import training as exit_training
from models.exits.early_exit import EarlyExitHead, EarlyExitLLM, FrozenStates, train_early_exit_heads, validation_losses
from models.exits.states import StateFiles
from models.exits.texts import TokenizedText
from models.exits.training import ExitRecipe, TrainingProgress
from models.partition import exit_tensors
from models.partition.checkpoint import Checkpoint, find

__all__ = ["EarlyExitHead", "EarlyExitLLM", "train_early_exit_heads"]

LONGEST = 1024
"""Tokens of a text; the rest is cut."""


class Fit(NamedTuple):
    """An exit's temperature, and its expected calibration error (0 to 1) without and with it."""

    temperature: float
    ece_before: float
    ece_after: float


def load_model(checkpoint: Checkpoint, exits: list[int]) -> EarlyExitLLM:
    """The model on the GPU if there is one, else on the CPU in float32, which is faster there."""
    disable_progress_bar()
    gpu = torch.cuda.is_available()
    dtype = "auto" if gpu else torch.float32
    base = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, use_safetensors=True)
    return EarlyExitLLM(base, exits).to("cuda" if gpu else "cpu")


def fit_temperatures(
    model: EarlyExitLLM, states: Iterable[FrozenStates], done: Callable[[], object] = lambda: None
) -> list[Fit]:
    """For each exit, the temperature at which the whole model's next tokens are likeliest (Guo et al. 2017).

    `done` is called twice per exit.
    """
    kept = list(states)
    fits = []
    for number in range(len(model.early_exit_layers)):
        coarse = _calibrated(model, number, kept, COARSE)
        done()
        found = _calibrated(model, number, kept, np.append(1.0, coarse.temperatures[coarse.best] * FINE))
        done()
        fits.append(Fit(float(found.temperatures[found.best]), float(found.ece[0]), float(found.ece[found.best])))
    return fits


def _calibrated(model: EarlyExitLLM, number: int, states: list[FrozenStates], temperatures: Any) -> Calibration:
    calibration = Calibration(temperatures)
    head = model.exit_heads[str(model.early_exit_layers[number])]
    with torch.no_grad():
        for batch in states:
            for at in torch.arange(len(batch.last)).split(ROWS):
                tokens = model.targets(FrozenStates(batch.exits[:, at], batch.last[at])).argmax(-1)
                calibration.add(head(batch.exits[number, at]).numpy(), tokens.numpy())
    return calibration


def write_exits(model: EarlyExitLLM, temperatures: list[float], path: Path) -> None:
    """Writes norms and heads in bf16 and temperatures in float32, in the format of models/partition/exit_tensors.py."""
    tensors = {}
    for (exit, head), temperature in zip(model.exit_heads.items(), temperatures, strict=True):
        tensors[exit_tensors.norm_name(int(exit))] = head.norm.detach().bfloat16().cpu()
        tensors[exit_tensors.head_name(int(exit))] = head.head.detach().bfloat16().cpu()
        tensors[exit_tensors.temperature_name(int(exit))] = torch.tensor([temperature])
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished)
    unfinished.rename(path)


def work_folder(
    output: Path, checkpoint: Checkpoint, exits: list[int], texts: list[TokenizedText], recipe: ExitRecipe
) -> Path:
    """The folder of this training: its name is a hash of the model, the exits, the texts and the settings."""
    weights = [file_hash(path) for path in checkpoint.weight_files]
    key = hashlib.sha256(msgspec.json.encode([weights, exits, texts, asdict(recipe)])).hexdigest()
    return output.with_suffix(".training") / key[:16]


class Screen:
    """Shows a training on the terminal: a progress bar, and one line per epoch."""

    def __init__(self, bar: Bar, model: EarlyExitLLM, validation: StateFiles, positions: int) -> None:
        self._bar, self._model, self._validation, self._positions = bar, model, validation, positions
        self._task = bar.add_task("training")
        self._smooth: list[float] = []

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
            self._bar.console.print(f"epoch {progress.epoch}, loss (validation): {', '.join(words)}")


def train(model: str, exits: list[int], data: Path | None, recipe: ExitRecipe, output: Path) -> None:
    """Trains, fits and writes the exits. Raises ConfigError, before anything is computed, for wrong input."""
    checkpoint = Checkpoint(find(model))
    if fault := exits_fault(exits, checkpoint.layers):
        raise ConfigError(f"--exits: {fault}")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    longest = min(LONGEST, checkpoint.config.max_position_embeddings)
    texts, held_out = exit_texts.read(data, tokenizer, longest) if data else exit_texts.demo(tokenizer)
    split = load_model(checkpoint, exits)
    torch.manual_seed(recipe.seed)
    folder = work_folder(output, checkpoint, exits, [*texts, *held_out], recipe)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=console()) as bar:
        task = bar.add_task("states of texts", total=len(texts) + len(held_out))
        training, validation = (
            StateFiles(folder / name, split, part, lambda count: bar.advance(task, count))
            for name, part in (("training", texts), ("validation", held_out))
        )
        screen = Screen(bar, split, validation, recipe.positions)
        exit_training.train(split, training, recipe, folder, screen.show)
        task = bar.add_task("temperatures", total=2 * len(exits))
        fits = fit_temperatures(split.cpu(), validation.batches(recipe.positions), lambda: bar.advance(task))
    console().print(as_table(exits, fits))
    write_exits(split, [fit.temperature for fit in fits], output)
    console().print(f"wrote {output}; you can delete {output.with_suffix('.training')}")


def as_table(exits: list[int], fits: list[Fit]) -> Table:
    table = Table("exit after", "temperature", "calibration error without", "with")
    for exit, fit in zip(exits, fits, strict=True):
        table.add_row(f"{exit} layers", f"{fit.temperature:.2f}", f"{fit.ece_before:.4f}", f"{fit.ece_after:.4f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m models.exits", description="Train early exits of a model; the model itself does not change."
    )
    parser.add_argument("--model", required=True, help="folder or Hugging Face id of a Llama or Qwen2 checkpoint")
    parser.add_argument(
        "--exits", type=exit_tensors.layer_list, required=True, help="numbers of layers before each exit, e.g. 2,4"
    )
    parser.add_argument(
        "--data", type=Path, help="questions with answers (.jsonl) or text (.txt) (default: the demo corpus)"
    )
    parser.add_argument(
        "--epochs", type=count, default=ExitRecipe.epochs, help="passes over the data (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=ExitRecipe.rate, help="first learning rate (default: %(default)s)"
    )
    parser.add_argument(
        "--positions", type=count, default=ExitRecipe.positions, help="tokens per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=ExitRecipe.seed, help="seed of the order of batches (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write the exits to")
    args = parser.parse_args()
    recipe = ExitRecipe(args.epochs, args.rate, args.positions, args.seed)
    return run_sync_program(lambda: train(args.model, args.exits, args.data, recipe, args.output))
