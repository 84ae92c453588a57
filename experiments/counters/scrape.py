"""Counters read from a server's Prometheus page by name and label. Knows no server's metrics."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from common.http.client import HTTPClient

T = TypeVar("T")
STILL_SECONDS = 0.03


async def page(client: HTTPClient) -> str:
    async with client.session().get(f"{client.base_url}/metrics", headers=client.headers()) as response:
        return await response.text()


async def still(read: Callable[[], Awaitable[T]]) -> T:
    """What `read` says once it says the same twice: engines count a moment after their tokens are out."""
    found, before = await read(), None
    while found != before:
        await asyncio.sleep(STILL_SECONDS)
        found, before = await read(), found
    return found


def totals(text: str, wanted: Mapping[str, str]) -> dict[str, float]:
    """By the keys of `wanted` the sum of the samples that it names; what is not on the page is 0.

    A name is a sample's, summed over all labels, or with one label: `requests_total{route="/stream"}`.
    """
    sums = dict.fromkeys(wanted.values(), 0.0)
    names = tuple({name.partition("{")[0] for name in sums})
    lines = [line for line in text.splitlines(keepends=True) if line.startswith(names)]  # of a thousand
    for family in text_string_to_metric_families("".join(lines)):
        for sample in family.samples:
            labelled = [f'{sample.name}{{{label}="{value}"}}' for label, value in sample.labels.items()]
            for name in (sample.name, *labelled):
                if name in sums:
                    sums[name] += sample.value
    return {key: sums[name] for key, name in wanted.items()}
