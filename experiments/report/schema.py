"""Defines the report of an experiment over configurations: the schema of `ablation_report.json`."""

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from common.errors import ConfigError
from experiments.counters.cloud import CloudCounts
from experiments.counters.edge import EdgeCounts

SCHEMA_VERSION = 1


class MeasureInfo(Struct, frozen=True):
    """The name of a measure, and how to read it. `counted`: a count, equal in two runs with the same seed."""

    title: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    counted: bool


class Measure(Struct, frozen=True):
    """A value and its 95 % interval over questions of this kind, by a bootstrap over the questions asked."""

    value: float
    low: float
    high: float


class Difference(Struct, frozen=True):
    """A measure minus the baseline's, paired by question. `clear`: the interval does not contain 0."""

    value: float
    low: float
    high: float
    clear: bool


class NetworkCounts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The traffic between edge and cloud, headers included, and the connections opened for it."""

    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0


class Counts(Struct, frozen=True, kw_only=True):
    """What servers and network counted during an answer, independently of the answer's own counts."""

    edge: EdgeCounts
    cloud: CloudCounts
    network: NetworkCounts


class AnswerRow(Struct, frozen=True, kw_only=True):
    """One answer, or its error. Times are from the question to the first and to the last token.

    `waited_ms`: for the cloud, network included; `counts`: null if others ran at the same time.
    """

    question: int
    repeat: int
    text: str = ""
    error: str | None = None
    quality: float | None = None
    latency_ms: float = 0.0
    first_token_ms: float = 0.0
    tokens: int = 0
    provenance: dict[str, int] = field(default_factory=dict)
    cloud_calls: int = 0
    cloud_steps: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    degraded: str | None = None
    prompt_tokens: int = 0
    waited_ms: float = 0.0
    counts: Counts | None = None
    confidences: list[float] = []
    """Of the first tokens, if the configuration asks for them."""


class ConfigurationReport(Struct, kw_only=True):
    """One ablation: its changes (`request`: fields of its requests) and its results. `provenance`: tokens in all.

    `measures`: by the names of `ExperimentReport.measures`, those that apply. `unchanged`: no count differs from the
    baseline's, and no other measure differs clearly and notably.
    """

    name: str
    description: str
    config_overrides: dict[str, Any]
    request: dict[str, Any] = field(default_factory=dict)
    answers: int
    failures: int
    first_failure: str | None = None
    measures: dict[str, Measure]
    differences: dict[str, Difference] = field(default_factory=dict)
    provenance: dict[str, int]
    latencies_ms: list[float]
    unchanged: bool = False


class Contribution(Struct, frozen=True, kw_only=True):
    """The effect of one of F1 to F4 on a measure that it is meant to improve: with it (the baseline) and without it."""

    feature: str
    configuration: str
    measure: str
    baseline: float
    without: float
    difference: Difference


class Series(Struct, frozen=True, kw_only=True):
    """Names of configurations that differ in one number; `at`: that number of each."""

    name: str
    configurations: list[str]
    at: list[float]


class Curves(Struct, frozen=True, kw_only=True):
    """A plot: the measure `y` of every series over the measure `x`, or over the number of the series if `x` is null."""

    y: str
    x: str | None = None


class Area(Struct, frozen=True, kw_only=True):
    """The mean of a measure over all cloud rates, along the curve of a series from edge only to cloud only.

    `to_line`: the difference to the mean along the straight line between these two, which a random gate would have;
    `to_best`: the difference to the largest area, null for the largest itself.
    """

    series: str
    measure: str
    area: Measure
    to_line: Difference
    to_best: Difference | None = None


class SweepDescription(Struct, kw_only=True):
    """The varied parameter and its plots. `ends`: configurations at which every curve begins or ends."""

    parameter: str
    series: list[Series]
    ends: list[str] = []
    plots: list[Curves]
    areas: list[Area] = []


class Environment(Struct, frozen=True, kw_only=True):
    """Where it was measured. `git_commit` ends with "+" if files differed from it; null outside git."""

    created: str
    git_commit: str | None
    machine: str
    cpu: str
    cpus: int
    memory_gb: float
    gpus: list[str]
    python: str
    versions: dict[str, str]


class Workload(Struct, frozen=True, kw_only=True):
    """The questions; `metric`: the name of their quality metric."""

    name: str
    questions: int
    metric: str
    prompts_sha256: str


class ReportTable(Struct, frozen=True, kw_only=True):
    """A table of an experiment beside its measures, of text cells; the first cell of a row is its name."""

    title: str
    note: str
    heads: list[str]
    rows: list[list[str]]


class Curve(Struct, frozen=True, kw_only=True):
    """Measures over an increasing number."""

    name: str
    x: list[float]
    y: list[Measure]


class Chart(Struct, frozen=True, kw_only=True):
    """Curves in one pair of axes; `level` is a value to compare them with."""

    name: str
    title: str
    note: str
    x: str
    y: str
    curves: list[Curve]
    level: float | None = None


class ExperimentReport(Struct, kw_only=True):
    """The whole report. `options`: the command line's; `config`: the one that the overrides were applied to.

    `rows`: answers by configuration; `sweep`: null unless a number was varied; `findings`: sentences for the summary.
    """

    schema_version: int = SCHEMA_VERSION
    title: str
    environment: Environment
    workload: Workload
    options: dict[str, Any]
    seed: int
    repeats: int
    network: dict[str, float] | None
    config: dict[str, Any]
    baseline: str
    measures: dict[str, MeasureInfo]
    configurations: list[ConfigurationReport]
    contributions: list[Contribution]
    rows: dict[str, list[AnswerRow]]
    warnings: list[str] = []
    sweep: SweepDescription | None = None
    findings: list[str] = []
    tables: list[ReportTable] = []
    charts: list[Chart] = []


def read(path: Path) -> ExperimentReport:
    """Raises ConfigError for a file that is no report, or a report of another version."""
    try:
        data = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        if (version := data["schema_version"]) != SCHEMA_VERSION:
            raise ConfigError(f"{path}: a report of version {version}; this program reads version {SCHEMA_VERSION}")
        return msgspec.convert(data, ExperimentReport)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (msgspec.MsgspecError, KeyError) as error:
        raise ConfigError(f"{path}: not a report ({error})") from error
