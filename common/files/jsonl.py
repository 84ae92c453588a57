"""Reads JSON lines as typed rows; an error names the line."""

import gzip
import zlib
from pathlib import Path
from typing import TypeVar

import msgspec

from common.errors import ConfigError

R = TypeVar("R")


def read(path: Path, row: type[R]) -> list[R]:
    """One row for each line that is not blank; a file ending in .gz is unpacked. Raises ConfigError."""
    rows = []
    for number, line in enumerate(contents(path).split(b"\n"), 1):
        if line.strip():
            try:
                rows.append(msgspec.json.decode(line, type=row))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}, line {number}: {error}") from error
    return rows


def contents(path: Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in .gz. Raises ConfigError."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: broken gzip ({error})") from error
