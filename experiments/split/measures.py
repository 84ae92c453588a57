"""Defines the additional measures of a split model: bytes against a naive split, the cloud's layers, parts of the time.

A reduction compares the bytes of all answers together.
"""

from collections.abc import Callable

from experiments.harness.measures import (
    MEASURES,
    MeasureDefinition,
    RatioOfSums,
    UnitResult,
    cloud_tokens,
    count,
    counted,
    mean,
    over,
    time,
)
from experiments.report.schema import AnswerRow
from experiments.split import formulas
from experiments.split.formulas import READINGS, SplitShape

ALSO = (
    "latency_mean_ms", "latency_p50_ms", "latency_p95_ms", "first_token_p50_ms", "tokens_per_second", "success_rate",
    "quality", "tokens", "bytes_up", "bytes_down",
)  # fmt: skip
"""Measures of all experiments that are defined here too."""


def measures(shape: SplitShape) -> dict[str, MeasureDefinition]:
    """All measures of an experiment with a model of this shape, by name."""
    return {
        **{name: MEASURES[name] for name in ALSO},
        "cloud_rate": count("Cloud request rate", "", "lower", over(cloud_tokens, lambda row: row.tokens)),
        "asking_rate": count("Answers that ask the cloud", "", "lower", mean(lambda row: float(row.cloud_calls > 0))),
        "cloud_layer_share": count("Cloud layer-tokens, share of all", "", "lower", _cloud_layers(shape)),
        "bytes": count("Bytes", "per answer", "lower", mean(sent), exact=False),
        "network_bytes": count(
            "Bytes, with headers", "per answer", "lower",
            counted(lambda each: each.network.bytes_up + each.network.bytes_down), exact=False,
        ),
        **{name: _naive(shape, title, of) for name, (title, _, of) in READINGS.items()},
        **{f"reduction_{name}": _reduction(shape, title, of) for name, (title, _, of) in READINGS.items()},
        "edge_ms": time("Edge time", mean(lambda row: row.latency_ms - row.waited_ms)),
        "cloud_ms": time("Cloud time", _cloud_ms()),
        "communication_ms": time("Communication time", _communication()),
    }  # fmt: skip


def sent(row: AnswerRow) -> float:
    """Bytes in both directions as the answer counts them: frames without headers."""
    return row.bytes_up + row.bytes_down


Reading = Callable[[SplitShape, int, int], int]


def _naive(shape: SplitShape, title: str, of: Reading) -> MeasureDefinition:
    how = mean(lambda row: of(shape, row.prompt_tokens, row.tokens))
    return count(f"Naive split {title}", "bytes per answer", "neither", how)


def _reduction(shape: SplitShape, title: str, of: Reading) -> MeasureDefinition:
    def saved(row: AnswerRow) -> float:
        return of(shape, row.prompt_tokens, row.tokens) - sent(row)

    how = over(saved, lambda row: of(shape, row.prompt_tokens, row.tokens))
    return count(f"Data saved against {title}", "", "higher", how, exact=False)


def _cloud_layers(shape: SplitShape) -> RatioOfSums:
    """Positions times layers that the cloud computed, over those that the whole model needs for the answers."""

    def in_cloud(unit: UnitResult) -> float:
        tail = sum(each.cloud.split_layer_tokens for each in unit.counts)
        drawn = sum(each.cloud.drawn for each in unit.counts)
        # vLLM also counts the last token of an answer, which is never fed to the model.
        whole = sum(each.cloud.prefix_computed for each in unit.counts) + drawn - len(unit.rows) if drawn else 0.0
        return tail + formulas.layer_tokens(shape.layers, whole)

    def of_whole_model(unit: UnitResult) -> float:
        return shape.layers * sum(formulas.positions(row.prompt_tokens, row.tokens) for row in unit.rows)

    return RatioOfSums(in_cloud, of_whole_model)


def _cloud_seconds(unit: UnitResult) -> float:
    return sum(each.cloud.request_seconds + each.cloud.split_seconds for each in unit.counts)


def _cloud_ms() -> RatioOfSums:
    return RatioOfSums(lambda unit: 1000 * _cloud_seconds(unit), lambda unit: len(unit.rows))


def _communication() -> RatioOfSums:
    """The time that the edge waited for the cloud, minus the cloud's own time."""
    return RatioOfSums(
        lambda unit: sum(row.waited_ms for row in unit.rows) - 1000 * _cloud_seconds(unit),
        lambda unit: len(unit.rows),
    )
