"""Reads, writes and checks the manifest of a split model and the files that it names."""

import hashlib
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from common.errors import ConfigError

NAME = "manifest.json"
VERSION = 2
"""What this program writes; it also reads version 1, whose segments share nothing and have no translators."""
DEMO = Path("models/demo-split") / NAME
"""The demo model's manifest, written by `make setup`."""


class NamedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file beside the manifest."""

    file: str
    sha256: str


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GGUF file that the edge runs: layers `first` ... `last`, counted from 0, and the exit after them."""

    file: str
    sha256: str
    first: int
    last: int
    quantization: str
    shares_head: bool = False
    """Whether its exit's head is the model's own, in `shared`; else the segment's file has a head."""
    translator: NamedFile | None = None
    """The affine map of its states before norm and head: [H + 1, H] in float32, as NumPy saves it."""


class TailManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint folder that the cloud runs: layers `first` ... `last`, and the model's final norm and head."""

    folder: str
    sha256: str
    first: int
    last: int


class SegmentFiles(NamedTuple):
    """A segment's own file, that of its head if it shares it, and that of its translator if it has one."""

    own: Path
    shared: Path | None
    translator: Path | None


class SplitManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model in pieces: edge segments that end at the exits, and the cloud's tail after the first of them."""

    version: int
    model: str
    fingerprint: str
    """sha256 over the whole model's weights and the first layer of its tail; edge and cloud must have the same."""
    architecture: str
    """llama.cpp's name of it: llama, qwen2, qwen3, gemma3 or phi3."""
    layers: int
    hidden: int
    vocab_size: int
    exits: list[int]
    """After how many layers each exit is; increasing."""
    segments: list[Segment]
    """One for each exit, in order."""
    tail: TailManifest
    tokenizer: str
    """sha256 of the model's tokenizer.json (or tokenizer.model)."""
    temperatures: list[float]
    """One for each exit, above 0: the exit's confidence is max softmax(logits / temperature)."""
    exits_trained: str
    """sha256 of the file of trained exits; "": every exit uses the model's final norm and head."""
    shared: NamedFile | None = None
    """The model's embeddings and head, as the second part of each GGUF model whose segment shares them."""

    def check_segments(self, folder: Path) -> list[SegmentFiles]:
        """The segments' files in `folder`, in order; raises ConfigError if one is missing or has another hash."""
        translators = [segment.translator for segment in self.segments if segment.translator]
        files: list[Segment | NamedFile] = [*self.segments, *translators, *([self.shared] if self.shared else [])]
        for file in files:
            _check_hash(folder / file.file, file.sha256, file_hash)
        return [self.segment_files(folder, number) for number in range(len(self.segments))]

    def segment_files(self, folder: Path, number: int) -> SegmentFiles:
        """The files of one segment in `folder`, unchecked."""
        segment = self.segments[number]
        shared = folder / self.shared.file if self.shared and segment.shares_head else None
        translator = folder / segment.translator.file if segment.translator else None
        return SegmentFiles(folder / segment.file, shared, translator)

    def check_tail(self, folder: Path) -> Path:
        """The tail's folder in `folder`; raises ConfigError if it is missing or has another hash."""
        path = folder / self.tail.folder
        _check_hash(path, self.tail.sha256, folder_hash)
        return path

    def check_tokenizer(self, path: Path) -> None:
        """Raises ConfigError unless the tokenizer file at `path` is the one that the model was split with."""
        _check_hash(path, self.tokenizer, file_hash)


def read_manifest(path: Path) -> SplitManifest:
    """The manifest at `path`, a file or its folder; raises ConfigError with a message of one line."""
    path = path / NAME if path.is_dir() else path
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=SplitManifest)
    except OSError as error:
        raise ConfigError(f"split manifest {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"split manifest {path}: {error}") from error
    if fault := _fault(manifest):
        raise ConfigError(f"split manifest {path}: {fault}")
    return manifest


def write_manifest(manifest: SplitManifest, folder: Path) -> None:
    """Writes a valid manifest into `folder`, as indented JSON."""
    assert not (fault := _fault(manifest)), fault
    (folder / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")


def named_file(path: Path) -> NamedFile:
    """The entry of a manifest for `path`."""
    return NamedFile(path.name, file_hash(path))


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: Path) -> str:
    """sha256 over the names and contents of all files in `folder`, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def exits_fault(exits: list[int], layers: int) -> str | None:
    """Why `exits`, numbers of layers before each exit, do not fit a model of `layers` layers; None if they do."""
    if not exits:
        return "no exits"
    if any(a >= b for a, b in itertools.pairwise(exits)):
        return f"exits {_listed(exits)} do not increase"
    if exits[0] < 1 or exits[-1] >= layers:
        return f"exits {_listed(exits)} are not all within the model: after 1 to {layers - 1} of its {layers} layers"
    return None


def _fault(manifest: SplitManifest) -> str | None:
    if not 1 <= manifest.version <= VERSION:
        return f"version {manifest.version}; this program reads versions 1 to {VERSION}"
    if fault := exits_fault(manifest.exits, manifest.layers):
        return fault
    layers = [(segment.first, segment.last) for segment in manifest.segments]
    if layers != [(first, end - 1) for first, end in itertools.pairwise([0, *manifest.exits])]:
        return f"segments do not end at the exits {_listed(manifest.exits)}"
    if (manifest.tail.first, manifest.tail.last) != (manifest.exits[0], manifest.layers - 1):
        return "the tail does not go from the first exit to the last layer"
    temperatures = manifest.temperatures
    if len(temperatures) != len(manifest.exits) or not all(0 < t < math.inf for t in temperatures):
        return "temperatures: each exit needs one above 0"
    if not manifest.shared and any(segment.shares_head for segment in manifest.segments):
        return "a segment shares its head, but no file is shared"
    files = [*manifest.segments, *(s.translator for s in manifest.segments if s.translator), manifest.shared]
    for name in (*(file.file for file in files if file), manifest.tail.folder):
        if not name or name in (".", "..") or Path(name).name != name:
            return f"{name!r} is not the name of a file or folder beside the manifest"
    return None


def _check_hash(path: Path, expected: str, hash_of: Callable[[Path], str]) -> None:
    try:
        found = hash_of(path)
    except OSError as error:
        raise ConfigError(f"split model's {path}: {error.strerror}") from error
    if found != expected:
        raise ConfigError(f"split model's {path}: not what its manifest names, but of another model or version")


def _listed(exits: list[int]) -> str:
    return ",".join(map(str, exits))
