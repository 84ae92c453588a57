"""Loads the questions of an experiment: the demo corpus, general prompts, JSON lines, or a public data set.

nothing given                    held-out questions of the demo corpus; for other models than the demo's: general
general                          prompts for any model, without right answers (see general.py)
editing                          texts to be changed a little, without right answers (see editing.py)
FILE.jsonl                       {"prompt": ..., "answer": ..., "metric": ...} a line (see workload.py)
alpaca:PATH  xsum:PATH ...       a public data set as published, in a file or folder, also .gz
alpaca  xsum  boolq  quac        the same from the Hugging Face hub's Parquet copy; needs pyarrow
imdb  humaneval
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from common.config_cloud import CloudModelConfig
from common.config_schema import Config
from common.errors import ConfigError
from common.files import jsonl
from experiments.questions import editing, general, workload
from experiments.questions.public_data import Alpaca, BoolQ, HumanEval, QuAC, QuACOnHub, Record, Review, XSum
from experiments.questions.workload import Question

R = TypeVar("R")
GENERAL = "general"
EDITING = "editing"
SPLITS = ("test", "val", "dev")
"""The file of a folder to read is the first that has one of these in its name."""


@dataclass(frozen=True)
class Dataset:
    """The questions of an experiment. `metric`: the names of all their metrics, separated by commas."""

    name: str
    metric: str
    questions: list[Question]


@dataclass(frozen=True)
class Public:
    """A public data set: its rows in a JSON document and in JSON lines or Parquet, and its file on the hub."""

    document: type[Record]
    row: type[Record]
    repository: str
    file: str
    folders: tuple[str, ...] = ()
    """Folders of texts, named after their label; a folder's index is the label."""


PUBLIC = {
    "alpaca": Public(Alpaca, Alpaca, "tatsu-lab/alpaca", "default/train/0000.parquet"),
    "xsum": Public(XSum, XSum, "EdinburghNLP/xsum", "default/test/0000.parquet"),
    "boolq": Public(BoolQ, BoolQ, "google/boolq", "default/validation/0000.parquet"),
    "quac": Public(QuAC, QuACOnHub, "allenai/quac", "plain_text/validation/0000.parquet"),
    "imdb": Public(Review, Review, "stanfordnlp/imdb", "plain_text/test/0000.parquet", ("neg", "pos")),
    "humaneval": Public(HumanEval, HumanEval, "openai/openai_humaneval", "openai_humaneval/test/0000.parquet"),
}


def spec_for(given: str | None, config: Config) -> str | None:
    """The data set to ask: the one given, else general prompts, unless the config has the demo's cloud model."""
    return given or (None if config.cloud.model.path == CloudModelConfig().path else GENERAL)


def load(spec: str | None, count: int, seed: int) -> Dataset:
    """At most `count` different questions, drawn by the seed; a smaller count gives the first of them.

    Raises ConfigError for invalid data, with file and line, and for data without a question.
    """
    if count < 1:
        raise ConfigError(f"the number of questions must be at least 1, not {count}")
    name, questions = "demo, held out" if spec is None else spec, workload.different(_questions(spec))
    if not questions:
        raise ConfigError(f"{name}: there is no question in it")
    chosen = workload.sample(questions, min(count, len(questions)), seed)
    return Dataset(name, ", ".join(sorted({question.metric for question in chosen})), chosen)


def _questions(spec: str | None) -> Iterable[Question]:
    if spec is None:
        return workload.held_out()
    if spec == GENERAL:
        pairs = zip(general.CODE, general.PROSE, strict=True)
        return [
            Question(prompt, kind=kind) for pair in pairs for prompt, kind in zip(pair, ("code", "prose"), strict=True)
        ]
    if spec == EDITING:
        return [Question(prompt, kind=EDITING) for prompt in editing.prompts()]
    name, _, path = spec.partition(":")
    if name in PUBLIC:
        records = local(PUBLIC[name], Path(path)) if path else from_hub(PUBLIC[name])
        return _questions_of(spec, records)
    file = Path(spec)
    if not file.exists():
        raise ConfigError(f"{spec}: neither a file nor one of {', '.join([GENERAL, EDITING, *PUBLIC])}")
    return workload.from_file(file)


def _questions_of(spec: str, records: Iterable[Record]) -> Iterator[Question]:
    for number, record in enumerate(records, 1):
        try:
            yield from record.ask()
        except ValueError as error:
            raise ConfigError(f"{spec}, record {number}: {error}") from error


# -- public data sets


def local(public: Public, path: Path) -> Sequence[Record]:
    """The records of a file or folder. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    if not path.is_dir():
        return from_file(public, path)
    labelled = _labelled(public, path)
    return from_folder(public, labelled) if labelled else from_file(public, _data_file(path))


def from_file(public: Public, path: Path) -> Sequence[Record]:
    """The records of a JSON document (a list, or {"data": a list}), JSON lines or Parquet, by the file's ending.

    Raises ConfigError.
    """
    match Path(path.name.removesuffix(".gz")).suffix:
        case ".json":
            return _document(path, public.document)
        case ".jsonl":
            return jsonl.read(path, public.row)
        case ".parquet":
            return _parquet(path, public.row)
    raise ConfigError(f"{path}: must be .json, .jsonl or .parquet (.gz behind it for the first two)")


def from_folder(public: Public, path: Path) -> Sequence[Record]:
    """The records of text files in a folder for each label, as in aclImdb."""
    return [
        msgspec.convert({"text": _text(file), "label": label}, public.row)
        for label, folder in enumerate(public.folders)
        for file in sorted((path / folder).glob("*.txt"))
    ]


def from_hub(public: Public) -> Sequence[Record]:
    """The records of the hub's Parquet copy, downloaded once into the hub's cache. Raises ConfigError."""
    _pyarrow(public.repository)  # fail before the download
    return _parquet(Path(_download(public.repository, public.file)), public.row)


def _download(repository: str, file: str) -> str:
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(repository, file, repo_type="dataset", revision="refs/convert/parquet")
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConfigError(f"cannot fetch {repository} from the hub ({reason}); give a file: NAME:PATH") from error


def _labelled(public: Public, path: Path) -> Path | None:
    """The folder with a subfolder for each label: this one or one of its test splits."""
    for folder in (path, *(path / split for split in SPLITS)):
        if public.folders and all((folder / label).is_dir() for label in public.folders):
            return folder
    return None


def _data_file(folder: Path) -> Path:
    endings = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
    files = sorted(file for file in folder.iterdir() if file.name.endswith(endings))
    test_files = [file for split in SPLITS for file in files if split in file.name]
    if not test_files and len(files) != 1:
        raise ConfigError(f"{folder}: {len(files)} data files in it, none named after {', '.join(SPLITS)}; name one")
    return (test_files or files)[0]


class Wrapped(msgspec.Struct, Generic[R]):
    """A JSON document with its rows under "data"."""

    data: list[R]


def _document(path: Path, row: type[R]) -> list[R]:
    try:
        document = msgspec.json.decode(jsonl.contents(path), type=list[row] | Wrapped[row])  # type: ignore[valid-type]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return document.data if isinstance(document, Wrapped) else document


def _parquet(path: Path, row: type[R]) -> list[R]:
    arrow = _pyarrow(path)
    try:
        rows = arrow.parquet.read_table(path).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise ConfigError(f"{path}: {error}") from error
    return list(_converted(path, rows, row))


def _pyarrow(wanted_by: object) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{wanted_by} is in Parquet, which needs pyarrow: pip install pyarrow") from error
    return pyarrow


def _converted(path: Path, rows: Iterable[object], row: type[R]) -> Iterator[R]:
    for number, one in enumerate(rows, 1):
        try:
            yield msgspec.convert(one, row)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{path}, row {number}: {error}") from error


def _text(path: Path) -> str:
    try:
        return jsonl.contents(path).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
