"""What a report of an experiment holds: the schema of `ablation_report.json`. Knows not how it is measured or drawn.

Every measure has an interval, that of a bootstrap over questions; every configuration is compared with the baseline.
"""

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from common.errors import ConfigError
from experiments.counters.cloud import CloudCounts
from experiments.counters.edge import EdgeCounts

SCHEMA_VERSION = 1


class MeasureInfo(Struct, frozen=True):
    """What a measure is called, and how it is read. `counted`: a count, the same in two runs with one seed."""

    title: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    counted: bool


class Measure(Struct, frozen=True):
    """A value, and the interval that holds 95 % of what other questions of this kind would give."""

    value: float
    low: float
    high: float


class Difference(Struct, frozen=True):
    """A measure minus the baseline's, paired by question. `clear`: the interval does not hold 0."""

    value: float
    low: float
    high: float
    clear: bool


class NetworkCounts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What passed between edge and cloud, headers too, and the connections that were made for it."""

    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0


class Counts(Struct, frozen=True, kw_only=True):
    """What servers and network have counted while an answer was made: a second way of counting beside the answer's."""

    edge: EdgeCounts
    cloud: CloudCounts
    network: NetworkCounts


class AnswerRow(Struct, frozen=True, kw_only=True):
    """One answer, or why there is none. Milliseconds from the question to the first token and to the last.

    `counts` is null where other answers were under way at the same time.
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
    """Milliseconds that the edge waited for the cloud, network included."""
    counts: Counts | None = None


class ConfigurationReport(Struct, kw_only=True):
    """One ablation: what it changed, and what came of it. `measures` by the names of `ExperimentReport.measures`.

    A measure that makes no sense here (an acceptance rate without drafts) is left out. `provenance`: tokens in all.
    `unchanged`: no count differs from the baseline's, and no other measure clearly and notably does.
    """

    name: str
    description: str
    config_overrides: dict[str, Any]
    request: dict[str, Any] = field(default_factory=dict)
    """What its requests say, because the overrides ask for it or because its mode is no matter of config."""
    answers: int
    failures: int
    first_failure: str | None = None
    measures: dict[str, Measure]
    differences: dict[str, Difference] = field(default_factory=dict)
    provenance: dict[str, int]
    latencies_ms: list[float]
    """Of every answer, for the distribution."""
    unchanged: bool = False


class Contribution(Struct, frozen=True, kw_only=True):
    """What one of F1 to F4 is worth by the measure that it is for: with it (the baseline) and without it."""

    feature: str
    configuration: str
    measure: str
    baseline: float
    without: float
    difference: Difference


class Series(Struct, frozen=True, kw_only=True):
    """Configurations that differ in one number, by name, and that number `at` each of them."""

    name: str
    configurations: list[str]
    at: list[float]


class Curves(Struct, frozen=True, kw_only=True):
    """A plot: the measure `y` of every series over the measure `x`, or over their number where that is null."""

    y: str
    x: str | None = None


class Area(Struct, frozen=True, kw_only=True):
    """The mean of a measure over all cloud rates, along the curve of a series from edge only to cloud only.

    `to_line`: less the mean along the straight line between these two, which a gate that draws lots would have;
    `to_best`: less the largest of the areas, null for that one.
    """

    series: str
    measure: str
    area: Measure
    to_line: Difference
    to_best: Difference | None = None


class SweepDescription(Struct, kw_only=True):
    """What was varied, and how it is to be looked at. `ends`: configurations that every curve begins or ends at."""

    parameter: str
    series: list[Series]
    ends: list[str] = []
    plots: list[Curves]
    areas: list[Area] = []


class Environment(Struct, frozen=True, kw_only=True):
    """Where it was measured. `git_commit` has "+" behind it where files differed from it; null outside git."""

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
    """Which questions were asked; `metric` names what their quality is measured by."""

    name: str
    questions: int
    metric: str
    prompts_sha256: str


class ReportTable(Struct, frozen=True, kw_only=True):
    """What an experiment says beside its measures, in rows of texts; the first of each row is its name."""

    title: str
    note: str
    heads: list[str]
    rows: list[list[str]]


class Curve(Struct, frozen=True, kw_only=True):
    """Measures over a number that increases."""

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
    """All of it. `options`: the command line's; `config`: the whole config that the overrides were applied to."""

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
    """Every answer, by configuration."""
    warnings: list[str] = []
    sweep: SweepDescription | None = None
    """Of an experiment that varies a number; null of one that does not."""
    findings: list[str] = []
    """Sentences of the experiment's own, for the summary."""
    tables: list[ReportTable] = []
    charts: list[Chart] = []


def read(path: Path) -> ExperimentReport:
    """Raises ConfigError for what is no report, or one of another version."""
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise ConfigError(f"{path}: a report of version {version}; this program reads version {SCHEMA_VERSION}")
        return msgspec.json.decode(data, type=ExperimentReport)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: not a report ({error})") from error


def write(report: ExperimentReport, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


class _Version(Struct):
    schema_version: int
