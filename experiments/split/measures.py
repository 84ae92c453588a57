"""What is measured of a split model beside what is of all: bytes against a naive split, the cloud's layers, times.

Knows neither servers nor reports. All are sums over answers; a reduction is by all bytes of all answers.
"""

from collections.abc import Callable

from experiments.harness.measures import (
    MEASURES,
    Asked,
    Definition,
    RatioOfSums,
    by_the_cloud,
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
"""Measures of all experiments that make sense here."""


def measures(shape: SplitShape) -> dict[str, Definition]:
    return {
        **{name: MEASURES[name] for name in ALSO},
        "cloud_rate": count("Cloud request rate", "", "lower", over(by_the_cloud, lambda row: row.tokens)),
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
    """Up and down, as the answer counts it: frames without headers."""
    return row.bytes_up + row.bytes_down


Reading = Callable[[SplitShape, int, int], int]


def _naive(shape: SplitShape, title: str, of: Reading) -> Definition:
    how = mean(lambda row: of(shape, row.prompt_tokens, row.tokens))
    return count(f"Naive split {title}", "bytes per answer", "neither", how)


def _reduction(shape: SplitShape, title: str, of: Reading) -> Definition:
    def saved(row: AnswerRow) -> float:
        return of(shape, row.prompt_tokens, row.tokens) - sent(row)

    how = over(saved, lambda row: of(shape, row.prompt_tokens, row.tokens))
    return count(f"Data saved against {title}", "", "higher", how, exact=False)


def _cloud_layers(shape: SplitShape) -> RatioOfSums:
    """What the cloud's engines computed, positions times layers, over what the whole model computes for the answers."""

    def computed(asked: Asked) -> float:
        tail = sum(each.cloud.split_layer_tokens for each in asked.counts)
        drawn = sum(each.cloud.drawn for each in asked.counts)
        # vLLM counts the last token of an answer, too, which nothing was computed with.
        whole = sum(each.cloud.prefix_computed for each in asked.counts) + drawn - len(asked.rows) if drawn else 0.0
        return tail + formulas.layer_tokens(shape.layers, whole)

    def of_all(asked: Asked) -> float:
        return shape.layers * sum(formulas.positions(row.prompt_tokens, row.tokens) for row in asked.rows)

    return RatioOfSums(computed, of_all)


def _cloud_seconds(asked: Asked) -> float:
    return sum(each.cloud.request_seconds + each.cloud.split_seconds for each in asked.counts)


def _cloud_ms() -> RatioOfSums:
    return RatioOfSums(lambda asked: 1000 * _cloud_seconds(asked), lambda asked: len(asked.rows))


def _communication() -> RatioOfSums:
    """What the edge waited for the cloud, less what the cloud took."""
    return RatioOfSums(
        lambda asked: sum(row.waited_ms for row in asked.rows) - 1000 * _cloud_seconds(asked),
        lambda asked: len(asked.rows),
    )
