"""Reads the norm, head, translator and temperature of each exit: trained ones from a file, or the model's own.

The file is safetensors. An exit has a head, `exit.<layers>.norm.weight` [H] and `exit.<layers>.head.weight` [V, H], or
a translator before the model's own, `exit.<layers>.translator.weight` [H, H] and `exit.<layers>.translator.bias` [H];
in both cases `exit.<layers>.temperature` [1], default: 1, and perhaps `exit.<layers>.confident` [1], the share of
held-out positions that it predicts with a confidence of CONFIDENT_FROM or more. The file's metadata names the model, by
`WEIGHTS`.
"""

import argparse
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import ConfigError
from common.protocol.split_manifest import exits_fault, file_hash
from models.partition.checkpoint import Checkpoint

WEIGHTS = "weights"
"""The key of the file's metadata that holds `Checkpoint.weights_hash`."""
CONFIDENT_FROM = 0.8
"""The confidence of which a file counts the share; the default of edge.split.thresholds."""
_NAME = re.compile(
    r"exit\.[0-9]+\.(norm\.weight|head\.weight|translator\.weight|translator\.bias|temperature|confident)"
)


class TranslatorTensors(NamedTuple):
    """An affine map of hidden states: `weight`, [H, H], times the state, plus `bias`, [H]; both in float32."""

    weight: Tensor
    bias: Tensor


class Exits:
    """The exits of a checkpoint; `layers`: the numbers of layers before each; `path`: a file with these, or None.

    Raises ConfigError if an exit is outside the model, or if the file is of another model, or a tensor of it has a
    wrong shape or numbers that are not finite.
    """

    def __init__(self, checkpoint: Checkpoint, layers: list[int], path: Path | None) -> None:
        if fault := exits_fault(layers, checkpoint.layers):
            raise ConfigError(f"--exits: {fault}")
        self.layers = layers
        self._checkpoint = checkpoint
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
        """The scale of the exit's norm, [H], in float32."""
        own = norm_name(exit) in self._shapes
        return self._trained(norm_name(exit)).float() if own else self._checkpoint.norm

    def head(self, exit: int) -> Tensor:
        own = self._checkpoint.tensor
        return self._trained(head_name(exit)) if self.has_head(exit) else own(self._checkpoint.head)

    def translator(self, exit: int) -> TranslatorTensors | None:
        """What the exit's states go through before norm and head; None: nothing."""
        names = translator_names(exit)
        return TranslatorTensors(*map(self._trained, names)) if names[0] in self._shapes else None

    def logits(self, exit: int) -> Callable[[Tensor], Tensor]:
        """The function from hidden states, [n, H], to the exit's logits, [n, V]."""
        translator, eps = self.translator(exit), self._checkpoint.config.rms_norm_eps
        return partial(_logits, translator, self.norm(exit), self.head(exit).float(), eps)

    def has_head(self, exit: int) -> bool:
        """Whether the exit has a head of its own; else it uses the model's."""
        return head_name(exit) in self._shapes

    def _trained(self, name: str) -> Tensor:
        assert self._path
        with safe_open(self._path, "pt") as file:
            return file.get_tensor(name)

    def _check(self, path: Path) -> None:
        if not set(self.layers) <= set(there := exits_of(path)):
            raise ConfigError(f"{path}: has exits after {_listed(there)} layers, not {_listed(self.layers)}")
        for exit in self.layers:
            for name, shape, required in self._wanted(exit):
                if (found := self._shapes.get(name)) != shape and (found or required):
                    raise ConfigError(f"{path}: {name} is {found or 'missing'}, the model's is {shape}")
        if not all(0 < temperature < math.inf for temperature in self.temperatures):
            raise ConfigError(f"{path}: a temperature is not above 0")
        for name in self._shapes:
            if not self._trained(name).isfinite().all():
                raise ConfigError(f"{path}: {name} has numbers that are not finite; train the exits again")
        weights = weights_of(path)
        if (weights or self._translates) and weights != self._checkpoint.weights_hash:
            raise ConfigError(f"{path}: its exits were trained for a model with other weights; train them for this one")

    @property
    def _translates(self) -> bool:
        return any(translator_names(exit)[0] in self._shapes for exit in self.layers)

    def _wanted(self, exit: int) -> list[tuple[str, tuple[int, ...], bool]]:
        """The names and shapes of an exit's tensors, and whether they are required."""
        config = self._checkpoint.config
        weight, bias = translator_names(exit)
        translates = weight in self._shapes or bias in self._shapes
        return [
            (norm_name(exit), (config.hidden_size,), not translates),
            (head_name(exit), (config.vocab_size, config.hidden_size), False),
            (weight, (config.hidden_size, config.hidden_size), translates),
            (bias, (config.hidden_size,), translates),
            (temperature_name(exit), (1,), False),
            (confident_name(exit), (1,), False),
        ]


def exits_of(path: Path) -> list[int]:
    """The numbers of layers before each exit of a file, in increasing order."""
    return sorted({int(name.split(".")[1]) for name in shapes(path)})


def weights_of(path: Path) -> str:
    """The hash of the weights that a file's exits were trained for; "": an old file that does not say."""
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get(WEIGHTS, ""))


def confident_shares(path: Path) -> dict[int, float]:
    """The share of held-out positions that each exit of a file predicts with confidence; empty: the file has none."""
    found = [exit for exit in exits_of(path) if confident_name(exit) in shapes(path)]
    with safe_open(path, "pt") as file:
        shares = {exit: file.get_tensor(confident_name(exit)).flatten().tolist() for exit in found}
    if not all(len(each) == 1 and 0 <= each[0] <= 1 for each in shares.values()):
        raise ConfigError(f"{path}: the shares that its exits are confident of are not all within 0 to 1")
    return {exit: share for exit, (share,) in shares.items()}


def own_logits(checkpoint: Checkpoint) -> Callable[[Tensor], Tensor]:
    """The function from the model's last hidden states, [n, H], to its logits, [n, V]."""
    head = checkpoint.tensor(checkpoint.head).float()
    return partial(_logits, None, checkpoint.norm, head, checkpoint.config.rms_norm_eps)


def _logits(translator: TranslatorTensors | None, norm: Tensor, head: Tensor, eps: float, states: Tensor) -> Tensor:
    states = states.float()
    if translator:
        states = nn.functional.linear(states, translator.weight, translator.bias)
    return nn.functional.rms_norm(states, norm.shape, norm, eps) @ head.T


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


def translator_names(exit: int) -> tuple[str, str]:
    """The names of its weight and of its bias."""
    return f"exit.{exit}.translator.weight", f"exit.{exit}.translator.bias"


def confident_name(exit: int) -> str:
    return f"exit.{exit}.confident"


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
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: tensor {name} does not belong to an exit; `python -m models.exits` writes such a file"
            )
    if not found:
        raise ConfigError(f"{path}: no exits in it")
    return found


def _listed(layers: list[int]) -> str:
    return ",".join(map(str, layers))
