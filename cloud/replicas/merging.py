"""Figures of several replicas as one page: metrics with a label `replica`, statistics added up."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

SHARES = frozenset({"kv_cache_usage"})
"""Figures of which the mean is meant, not the sum."""
SETTINGS = frozenset({"hardware", "max_draft_tokens"})
"""What is the same for all."""


def merged_metrics(pages: Mapping[str, str]) -> bytes:
    """The metrics pages of several servers as one, each sample with the name of its server as `replica`."""
    registry = CollectorRegistry()
    registry.register(_Pages(pages))
    return generate_latest(registry)


class _Pages(Collector):
    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for name, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [_labelled(sample, name) for sample in family.samples]
        yield from families.values()


def _labelled(sample: Sample, replica: str) -> Sample:
    return sample._replace(labels={**sample.labels, "replica": replica})


def merged_stats(stats: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers are added up, also in mappings below; of anything else, and of settings, the first one's value counts."""
    found = list(stats)
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in found for name in one):
        values = [one[name] for one in found if name in one]
        merged[name] = _merged(name, values)
    return merged


def _merged(name: str, values: list[Any]) -> Any:
    if name in SHARES:
        return sum(values) / len(values)
    if name in SETTINGS:
        return values[0]
    if all(isinstance(value, Mapping) for value in values):
        return merged_stats(values)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return sum(numbers) if len(numbers) == len(values) else values[0]
