"""Fits the temperature of each exit, under which its confidence is calibrated."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table

from calibration.temperature import COARSE, FINE, ROWS, Calibration
from models.exits.early_exit import FrozenStates, TrainableExits
from models.partition.exit_tensors import CONFIDENT_FROM

LOGITS = 1 << 28
"""The most logits of an exit that its temperature is fitted to, which bounds the time with a large vocabulary."""


class Fit(NamedTuple):
    """An exit's temperature, and its expected calibration error (0 to 1) without and with it.

    `agreement`: the share of positions at which its likeliest token is the whole model's; `confident`: the share with a
    confidence of CONFIDENT_FROM or more.
    """

    temperature: float
    ece_before: float
    ece_after: float
    agreement: float
    confident: float


def fit_temperatures(
    model: TrainableExits, states: Iterable[FrozenStates], done: Callable[[], object] = lambda: None
) -> list[Fit]:
    """For each exit, the temperature at which the whole model's next tokens are likeliest (Guo et al. 2017).

    `done` is called twice per exit.
    """
    kept = list(states)
    fits = []
    for number in range(len(model.early_exit_layers)):
        coarse, _ = _calibrated(model, number, kept, COARSE)
        done()
        found, agreement = _calibrated(model, number, kept, np.append(1.0, coarse.temperatures[coarse.best] * FINE))
        done()
        ece = float(found.ece[0]), float(found.ece[found.best])
        confident = float(found.confident(CONFIDENT_FROM)[found.best])
        fits.append(Fit(float(found.temperatures[found.best]), *ece, agreement, confident))
    return fits


def _calibrated(
    model: TrainableExits, number: int, states: list[FrozenStates], temperatures: Any
) -> tuple[Calibration, float]:
    """The calibration, and the share of next tokens that are the whole model's."""
    calibration, same = Calibration(temperatures), 0
    parts = (batch.at(rows) for batch in states for rows in torch.arange(len(batch.last)).split(ROWS))
    with torch.no_grad():
        for part in parts:
            logits, tokens = model.logits(number, part.exits[number]), model.next_tokens(part)
            calibration.add(logits.float().numpy(), tokens.numpy())
            same += int((logits.argmax(-1) == tokens).sum())
            if calibration.tokens * logits.shape[-1] >= LOGITS:
                break
    return calibration, same / max(calibration.tokens, 1)


def as_table(exits: list[int], fits: list[Fit]) -> Table:
    heads = "exit after", "same token as the model", "temperature", "calibration error without", "with"
    table = Table(*heads, f"confidence {CONFIDENT_FROM:g} or more")
    for exit, fit in zip(exits, fits, strict=True):
        shares = f"{fit.agreement:.4f}", f"{fit.temperature:.2f}", f"{fit.ece_before:.4f}", f"{fit.ece_after:.4f}"
        table.add_row(f"{exit} layers", *shares, f"{fit.confident:.4f}")
    return table
