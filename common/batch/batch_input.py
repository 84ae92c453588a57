"""The input of a batch: checked as a whole before anything is sent, then read line by line, whatever its length."""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from common.batch.lines import BatchLine, parse
from common.errors import ConfigError, RequestError
from common.http.messages import BODY_LIMIT

MAX_NAMED = 10
"""Bad lines that an error names; it counts the others."""
Numbers = npt.NDArray[np.uint64]


class BatchInput:
    """The requests of a file. Memory: 8 bytes a line, and 8 more while the file is checked."""

    def __init__(self, path: Path, url: str | None = None) -> None:
        """Reads the file once. `url`: what all lines must ask. Raises ConfigError that names bad lines by number."""
        self.path = path
        bad: list[str] = []
        bad_lines = 0
        keys, names = array("Q"), array("Q")
        try:
            for number, data in _lines(path):
                try:
                    line = _checked(data, len(keys), number, url)
                except RequestError as error:
                    bad_lines += 1
                    bad += [f"line {number}: {_said(error)}"] if len(bad) < MAX_NAMED else []
                else:
                    keys.append(line.key)
                    names.append(xxhash.xxh3_64_intdigest(line.custom_id.encode(errors="surrogatepass")))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        if not bad:
            bad = _doubles(path, np.array(names, np.uint64))
            bad_lines = len(bad)
        if bad:
            more = f"; and {bad_lines - MAX_NAMED} more" if bad_lines > MAX_NAMED else ""
            raise ConfigError(f"{path}: {'; '.join(bad[:MAX_NAMED])}{more}")
        if not keys:
            raise ConfigError(f"{path} has no lines")
        self.keys: Numbers = np.array(keys, np.uint64)
        """Of each line, in their order."""

    def __len__(self) -> int:
        return len(self.keys)

    def lines(self, wanted: Callable[[int], bool]) -> Iterator[BatchLine]:
        """The lines whose index is wanted, read as they are asked for."""
        for index, (number, data) in enumerate(_lines(self.path)):
            if index < len(self) and wanted(index):
                yield parse(data, index, number)


def _checked(data: bytes, index: int, number: int, url: str | None) -> BatchLine:
    if len(data) > BODY_LIMIT:
        raise RequestError(f"is longer than {BODY_LIMIT} bytes")
    line = parse(data, index, number)
    if url is not None and line.url != url:
        raise RequestError(f"must be {url}, as the batch's endpoint", param="url")
    return line


def _said(error: RequestError) -> str:
    return error.message if error.param is None else f"{error.param}: {error.message}"


def _doubles(path: Path, names: Numbers) -> list[str]:
    """The lines whose custom_id an earlier line has; only equal digests are looked at twice."""
    values, counts = np.unique(names, return_counts=True)
    doubled = values[counts > 1]
    if not len(doubled):
        return []
    suspects = set(np.flatnonzero(np.isin(names, doubled)).tolist())
    first: dict[str, int] = {}
    bad = []
    for index, (number, data) in enumerate(_lines(path)):
        if index in suspects:
            name = parse(data, index, number).custom_id
            if name in first:
                bad.append(f"line {number}: custom_id: line {first[name]} has the same")
            first.setdefault(name, number)
    return bad


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; of one that is too long only its beginning."""
    with path.open("rb") as file:
        number = 0
        while data := file.readline(BODY_LIMIT + 2):
            number += 1
            if not data.endswith(b"\n"):
                _skip_line(file)
            if data := data.strip():
                yield number, data


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(BODY_LIMIT)) and not rest.endswith(b"\n"):
        pass
