"""What the exits of a split model predict at each token of the whole model's answers, kept in one file.

`python -m models.exits.record` writes it, `python -m experiments.split.exit_confidence` reads it.
"""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from calibration.simulation import Numbers
from common.errors import ConfigError


class RecordedModel(Struct, frozen=True):
    """The model, the layers before each of its exits, and the questions' file (or what they are)."""

    model: str
    layers: int
    vocab_size: int
    exits: list[int]
    exits_file: str
    data: str
    own_answers: bool
    """Whether the answers are the model's own, not those of the file."""


@dataclass(frozen=True)
class ExitRecords:
    """T tokens of the answers to some questions, and E exits, each with its temperature: arrays [T] or [E, T].

    What compares an exit with the one before it is 0 at the first.
    """

    question: NDArray[np.int64]
    """[T]: which question's answer, counted from 0."""
    right: NDArray[np.int64]
    """[T]: the whole model's likeliest token."""
    token: NDArray[np.int64]
    """[E, T]: the exit's."""
    top: Numbers
    """[E, T]: its probability."""
    second: Numbers
    """[E, T]: that of the second likeliest token."""
    entropy: Numbers
    """[E, T]: of the distribution, in nats."""
    overlap: Numbers
    """[E, T]: with the distribution of the exit before: the sum of the lower probability of each token, 0 to 1."""
    saturation: Numbers
    """[E, T]: cosine of the states after this exit's layers and after those of the exit before."""

    @property
    def agrees(self) -> NDArray[np.bool_]:
        """[E, T]: whether the exit's token is the whole model's."""
        return np.asarray(self.token == self.right)

    @property
    def questions(self) -> int:
        return int(self.question.max()) + 1

    def check(self, exits: int) -> None:
        """Raises ValueError unless the arrays fit together and all numbers are finite."""
        count = len(self.right)
        for field in fields(self):
            found = getattr(self, field.name)
            if found.shape not in ((count,), (exits, count)) or not np.isfinite(found).all() or not count:
                raise ValueError(f"{field.name} has the shape {found.shape}, or numbers that are not finite")


def write(path: Path, model: RecordedModel, records: ExitRecords) -> None:
    """Replaces the file at once."""
    unfinished = path.with_name(path.name + ".part")
    arrays = {field.name: getattr(records, field.name) for field in fields(records)}
    with unfinished.open("wb") as file:
        np.savez_compressed(file, model=np.frombuffer(msgspec.json.encode(model), np.uint8), **arrays)
    unfinished.replace(path)


def read(path: Path) -> tuple[RecordedModel, ExitRecords]:
    """Raises ConfigError for a file that `write` has not written."""
    try:
        with np.load(path, allow_pickle=False) as file:
            model = msgspec.json.decode(file["model"].tobytes(), type=RecordedModel)
            records = ExitRecords(*(file[field.name] for field in fields(ExitRecords)))
        records.check(len(model.exits))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError, AttributeError) as error:
        raise ConfigError(f"{path}: not a recording of exits ({error})") from error
    return model, records
