"""Reads counters from a server's Prometheus page by name and label."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from common.errors import EndpointError
from common.http.client import HTTPClient

T = TypeVar("T")
STILL_SECONDS = 0.03
"""Between two readings that must be equal."""


async def page(client: HTTPClient) -> str:
    """The text of /metrics. Raises EndpointError where the server does not give it, for want of a key or otherwise."""
    async with client.session().get(f"{client.base_url}/metrics", headers=client.headers()) as response:
        if response.status != 200:
            raise EndpointError(f"{client.base_url}/metrics: {response.status}")
        return await response.text()


async def when_stable(read: Callable[[], Awaitable[T]]) -> T:
    """The first reading that equals the one before it."""
    current, previous = await read(), None
    while current != previous:
        await asyncio.sleep(STILL_SECONDS)
        current, previous = await read(), current
    return current


def totals(text: str, wanted: Mapping[str, str]) -> dict[str, float]:
    """For each key of `wanted`, the sum of the samples with the given name; 0 where there is none.

    A name stands for all labels (`requests_total`) or has one label (`requests_total{route="/stream"}`).
    """
    sums = dict.fromkeys(wanted.values(), 0.0)
    names = tuple({name.partition("{")[0] for name in sums})
    lines = [
        line for line in text.splitlines(keepends=True) if line.startswith(names)
    ]  # parse only these of about a thousand lines
    for family in text_string_to_metric_families("".join(lines)):
        for sample in family.samples:
            labelled = [f'{sample.name}{{{label}="{value}"}}' for label, value in sample.labels.items()]
            for name in (sample.name, *labelled):
                if name in sums:
                    sums[name] += sample.value
    return {key: sums[name] for key, name in wanted.items()}
