"""Trains exits with checkpoints, so that an interrupted training continues and ends with the same weights."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.exits.early_exit import FrozenStates, TrainableExits, train_early_exit_heads
from models.exits.states import StateFiles

CHECKPOINT_STEPS = 200
"""Steps between two checkpoints; the end of an epoch is one, too."""
NAME = "training.safetensors"


@dataclass(frozen=True)
class ExitRecipe:
    """How exits are trained: `rate` is the first learning rate, which falls linearly to 0 over the epochs."""

    epochs: int = 4
    rate: float = 1e-4
    positions: int = 512
    """Per batch."""
    seed: int = 0
    answer_tokens: int = 256
    """Of an answer that the model gives itself."""


@dataclass
class TrainingProgress:
    """How far a training is; `losses`: each exit's in the last step, in nats per token."""

    step: int
    steps: int
    steps_per_epoch: int
    losses: list[float]

    @property
    def epoch(self) -> int:
        return -(-self.step // self.steps_per_epoch)

    @property
    def epoch_ended(self) -> bool:
        return self.step % self.steps_per_epoch == 0


def train(
    model: TrainableExits,
    states: StateFiles,
    recipe: ExitRecipe,
    folder: Path,
    watch: Callable[[TrainingProgress], object],
) -> None:
    """Trains the exits of `model`. Continues from the checkpoint in `folder` if there is one, with the same result.

    `watch` is called once before the first step, and after each step.
    """
    optimizer = torch.optim.AdamW(model.exit_heads.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.0)
    first = load_checkpoint(folder / NAME, model, optimizer)
    per_epoch = states.steps(recipe.positions)
    progress = TrainingProgress(first, recipe.epochs * per_epoch, per_epoch, [])

    def set_rate() -> None:
        optimizer.param_groups[0]["lr"] = recipe.rate * (1 - progress.step / progress.steps)

    def after(step: int, losses: list[float]) -> None:
        progress.step, progress.losses = first + step, losses
        set_rate()
        if progress.epoch_ended or progress.step % CHECKPOINT_STEPS == 0:
            save_checkpoint(folder / NAME, model, optimizer, progress.step)
        watch(progress)

    set_rate()
    watch(progress)
    train_early_exit_heads(model, _batches(states, recipe, first), optimizer, num_epochs=1, watch=after)


def _batches(states: StateFiles, recipe: ExitRecipe, first: int) -> Iterator[FrozenStates]:
    """The batches of all epochs, without those of the first `first` steps."""
    number = 0
    for epoch in range(recipe.epochs):
        for batch in states.batches(recipe.positions, seed=recipe.seed + epoch):
            number += 1
            if number > first:
                yield batch


def save_checkpoint(path: Path, model: TrainableExits, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes the heads and the optimizer's state, and replaces the old file at once."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.exit_heads.named_parameters():
        tensors[f"heads.{name}"] = parameter.detach()
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, {"step": json.dumps(step)})
    unfinished.rename(path)


def load_checkpoint(path: Path, model: TrainableExits, optimizer: torch.optim.Optimizer) -> int:
    """Reads what `save_checkpoint` wrote and returns its number of steps; 0 if there is no file."""
    if not path.is_file():
        return 0
    tensors = load_file(path)
    for name, parameter in model.exit_heads.named_parameters():
        parameter.data.copy_(tensors[f"heads.{name}"])
        begin = f"optimizer.{name}."
        state = {key.removeprefix(begin): value for key, value in tensors.items() if key.startswith(begin)}
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
        }
    with safe_open(path, "pt") as file:
        return int(json.loads(file.metadata()["step"]))
