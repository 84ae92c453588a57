"""The parts that every report has, as values for html and markdown, and the files that a report is written to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from experiments.report import particulars, sweep_words
from experiments.report.panel_grid import PanelGrid
from experiments.report.schema import Environment, ExperimentReport, ReportTable
from experiments.report.words import Sentence


@dataclass(frozen=True)
class Document:
    """A report without its format. Texts are plain: the renderers escape them.

    `environment`: where it was measured; `command`: the command line that measures it again; `config`: the servers'
    config as YAML.
    """

    title: str
    byline: Sequence[str]
    summary: Sequence[Sentence] = ()
    warnings: Sequence[str] = ()
    grids: Sequence[PanelGrid] = ()
    tables: Sequence[ReportTable] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    config: str = ""


def of_experiment(report: ExperimentReport) -> Document:
    return Document(
        title=report.title,
        byline=byline(report.workload.name, report.seed, report.environment),
        summary=sweep_words.summary(report),
        warnings=report.warnings,
        tables=report.tables,
        environment=particulars.environment(report),
        command=particulars.command(report.options),
        config=msgspec.yaml.encode(report.config).decode(),
    )


def byline(workload: str, seed: int, where: Environment) -> list[str]:
    commit = [f"commit {particulars.short(where.git_commit)}"] if where.git_commit else []
    return [workload, f"seed {seed}", where.created, *commit]


@dataclass(frozen=True)
class ReportFiles:
    """The files of one report: NAME.json, .md, .html and others, in one folder."""

    folder: Path
    name: str

    @classmethod
    def at(cls, output: str | Path, name: str) -> Self:
        """Those that `--output` asks for: it is the folder, or the report's own file, if it ends in `.json`."""
        path = Path(output)
        own = path.suffix == ".json" and not path.is_dir()
        return cls(path.parent, path.stem) if own else cls(path, name)

    def file(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"


def write_files(files: ReportFiles, report: msgspec.Struct, markdown: str, html: str) -> list[Path]:
    """Writes the .json, .md and .html, into a folder that is made if it does not exist."""
    files.folder.mkdir(parents=True, exist_ok=True)
    written = [files.file(kind) for kind in ("json", "md", "html")]
    write_json(report, written[0])
    written[1].write_text(markdown)
    written[2].write_text(html)
    return written


def write_json(report: msgspec.Struct, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
