"""Trains the exits of a model and fits their temperatures: the command, what it shows and what it writes.

    python -m models.exits --model FOLDER|HUB-ID --exits 2,4 [--data FILE.jsonl|FILE.txt] --output FILE.safetensors

The model itself stays as it is. What it leaves of the texts is computed once and kept, with what has been learned, in
a folder beside the output: a training that was broken off goes on from there.
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
from cli.args import run_sync_program
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
"""Tokens of a text that are looked at."""


class Fit(NamedTuple):
    """An exit's temperature, and its expected calibration error without and with it."""

    temperature: float
    ece_before: float
    ece_after: float


def load_model(checkpoint: Checkpoint, exits: list[int]) -> EarlyExitLLM:
    """The model on the GPU if there is one; on a CPU in float32, which is the faster there."""
    disable_progress_bar()
    gpu = torch.cuda.is_available()
    dtype = "auto" if gpu else torch.float32
    base = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, use_safetensors=True)
    return EarlyExitLLM(base, exits).to("cuda" if gpu else "cpu")


def fit_temperatures(
    model: EarlyExitLLM, states: Iterable[FrozenStates], done: Callable[[], object] = lambda: None
) -> list[Fit]:
    """For each exit the temperature under which the whole model's next tokens are likeliest (Guo et al. 2017).

    `done` is called twice an exit.
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
    """Writes norms and heads in bf16, and temperatures in float32, as models/partition/exit_tensors.py reads them."""
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
    """The folder of exactly this training: another model, other exits, texts or settings have another one."""
    weights = [file_hash(path) for path in checkpoint.weight_files]
    key = hashlib.sha256(msgspec.json.encode([weights, exits, texts, asdict(recipe)])).hexdigest()
    return output.with_suffix(".training") / key[:16]


class Screen:
    """What is seen of a training: a bar, and a line for each epoch."""

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
    """Trains, fits and writes; raises ConfigError in one line before anything is computed."""
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
    console().print(f"wrote {output}; {output.with_suffix('.training')} is not needed any more")


def as_table(exits: list[int], fits: list[Fit]) -> Table:
    table = Table("exit after", "temperature", "calibration error without", "with")
    for exit, fit in zip(exits, fits, strict=True):
        table.add_row(f"{exit} layers", f"{fit.temperature:.2f}", f"{fit.ece_before:.4f}", f"{fit.ece_after:.4f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="Train early exits of a model that itself stays as it is.")
    parser.add_argument("--model", required=True, help="folder or hub id of a Llama or Qwen2 checkpoint")
    parser.add_argument("--exits", type=exit_tensors.layer_list, required=True, help="after how many layers: 2,4")
    parser.add_argument("--data", type=Path, help="lines of prompt and answer (.jsonl), or text (.txt); the demo's")
    parser.add_argument("--epochs", type=int, default=ExitRecipe.epochs, help="(%(default)s)")
    parser.add_argument("--rate", type=float, default=ExitRecipe.rate, help="first learning rate (%(default)s)")
    parser.add_argument("--positions", type=int, default=ExitRecipe.positions, help="in a batch (%(default)s)")
    parser.add_argument("--seed", type=int, default=ExitRecipe.seed, help="of the order (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file for the exits")
    args = parser.parse_args()
    recipe = ExitRecipe(args.epochs, args.rate, args.positions, args.seed)
    return run_sync_program(lambda: train(args.model, args.exits, args.data, recipe, args.output))
