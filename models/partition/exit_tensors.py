"""Reads the norm, head and temperature of each exit: trained ones from a file, or the model's own.

The file is safetensors: `exit.<layers>.norm.weight` [H]; `exit.<layers>.head.weight` [V, H], default: the model's head;
`exit.<layers>.temperature` [1], default: 1.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import ConfigError
from common.protocol.split_manifest import exits_fault, file_hash
from models.partition.checkpoint import NORM, Checkpoint


class Exits:
    """The exits of a checkpoint; `layers`: the numbers of layers before each; `path`: their file, or None.

    Raises ConfigError if an exit is outside the model, or a tensor of the file has a wrong shape.
    """

    def __init__(self, checkpoint: Checkpoint, layers: list[int], path: Path | None) -> None:
        if fault := exits_fault(layers, checkpoint.layers):
            raise ConfigError(f"--exits: {fault}")
        self.layers = layers
        self._checkpoint = checkpoint
        self._eps = checkpoint.config.rms_norm_eps
        self._path = path
        self._shapes = shapes(path) if path else {}
        if path:
            self._check(path)

    @property
    def sha256(self) -> str:
        return file_hash(self._path) if self._path else ""

    @property
    def temperatures(self) -> list[float]:
        names = [temperature_name(exit) for exit in self.layers]
        return [float(self._trained(name)[0]) if name in self._shapes else 1.0 for name in names]

    def norm(self, exit: int) -> Tensor:
        return self._trained(norm_name(exit)) if self._path else self._checkpoint.tensor(NORM)

    def head(self, exit: int) -> Tensor:
        own = self._checkpoint.tensor
        return self._trained(head_name(exit)) if self.has_head(exit) else own(self._checkpoint.head)

    def heads(self) -> list[Callable[[Tensor], Tensor]]:
        """For each exit, the function from hidden states, [n, H], to probabilities, [n, V]."""
        return [
            partial(_distribution, self.norm(exit).float(), self.head(exit).float(), temperature, self._eps)
            for exit, temperature in zip(self.layers, self.temperatures, strict=True)
        ]

    def has_head(self, exit: int) -> bool:
        """Whether the exit has a head of its own; else it uses the model's."""
        return head_name(exit) in self._shapes

    def _trained(self, name: str) -> Tensor:
        assert self._path
        with safe_open(self._path, "pt") as file:
            return file.get_tensor(name)

    def _check(self, path: Path) -> None:
        config = self._checkpoint.config
        if (there := exits_of(path)) != self.layers:
            raise ConfigError(f"{path}: has exits after {_listed(there)} layers, not {_listed(self.layers)}")
        for exit in self.layers:
            wanted: dict[str, tuple[int, ...]] = {norm_name(exit): (config.hidden_size,)}
            wanted[head_name(exit)] = (config.vocab_size, config.hidden_size)
            wanted[temperature_name(exit)] = (1,)
            for name, shape in wanted.items():
                if (found := self._shapes.get(name)) != shape and (found or name == norm_name(exit)):
                    raise ConfigError(f"{path}: {name} is {found or 'missing'}, the model's is {shape}")
        if not all(0 < temperature < math.inf for temperature in self.temperatures):
            raise ConfigError(f"{path}: a temperature is not above 0")


def exits_of(path: Path) -> list[int]:
    """The numbers of layers before each exit of a file, in increasing order."""
    return sorted({int(name.split(".")[1]) for name in shapes(path)})


def _distribution(norm: Tensor, head: Tensor, temperature: float, eps: float, states: Tensor) -> Tensor:
    normed = nn.functional.rms_norm(states.float(), norm.shape, norm, eps)
    return (normed @ head.T / temperature).softmax(-1)


def layer_list(text: str) -> list[int]:
    """The type of a flag that takes comma-separated numbers of layers."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, like 2,4, not {text!r}") from None


def norm_name(exit: int) -> str:
    return f"exit.{exit}.norm.weight"


def head_name(exit: int) -> str:
    return f"exit.{exit}.head.weight"


def temperature_name(exit: int) -> str:
    return f"exit.{exit}.temperature"


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of an exits file; raises ConfigError if it is none."""
    if not path.is_file():
        raise ConfigError(f"{path}: No such file")
    try:
        with safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for name in found:
        parts = name.split(".")
        if (
            len(parts) < 3
            or not parts[1].isdecimal()
            or name
            not in (
                norm_name(int(parts[1])),
                head_name(int(parts[1])),
                temperature_name(int(parts[1])),
            )
        ):
            raise ConfigError(
                f"{path}: tensor {name} does not belong to an exit; `python -m models.exits` writes such a file"
            )
    if not found:
        raise ConfigError(f"{path}: no exits in it")
    return found


def _listed(layers: list[int]) -> str:
    return ",".join(map(str, layers))
