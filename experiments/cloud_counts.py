"""What a cloud server has counted between two moments, from its /metrics. Knows no way of answering."""

import asyncio
from typing import Self

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from common.connection import HTTPClient

SAMPLES = {
    "steps": "vllm:iteration_tokens_total_count",
    "computed": "vllm:iteration_tokens_total_sum",
    "decode_seconds": "vllm:inter_token_latency_seconds_sum",
    "decode_steps": "vllm:inter_token_latency_seconds_count",
    "verify_seconds": "edgecloud_verify_seconds_sum",
    "verifies": "edgecloud_verify_seconds_count",
    "drafted": "edgecloud_drafted_tokens_total",
    "accepted": "edgecloud_accepted_tokens_total",
}
"""Which sample each field is, summed over its labels."""


class CloudCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Engine steps; prompt and answer tokens computed in them; decode steps of requests, and the seconds they took.

    A step that computes for several requests is one of `steps` and one of each request's `decode_steps`. Seconds are
    the server's own: no network is in them.
    """

    steps: float = 0
    computed: float = 0
    decode_seconds: float = 0
    decode_steps: float = 0
    verify_seconds: float = 0
    verifies: float = 0
    drafted: float = 0
    accepted: float = 0

    def __sub__(self, earlier: Self) -> "CloudCounts":
        return CloudCounts(**{name: getattr(self, name) - getattr(earlier, name) for name in SAMPLES})

    def __add__(self, other: Self) -> "CloudCounts":
        return CloudCounts(**{name: getattr(self, name) + getattr(other, name) for name in SAMPLES})


async def counted(client: HTTPClient) -> CloudCounts:
    """All that the server has counted: vLLM counts a step a moment after its tokens are out, so until it is still."""
    found, before = await _scraped(client), None
    while found != before:
        await asyncio.sleep(0.03)
        found, before = await _scraped(client), found
    return found


async def _scraped(client: HTTPClient) -> CloudCounts:
    async with client.session().get(f"{client.base_url}/metrics", headers=client.headers()) as response:
        return parsed(await response.text())


def parsed(page: str) -> CloudCounts:
    """The counts of one page; what is not on it is 0."""
    wanted = {sample: name for name, sample in SAMPLES.items()}
    totals = dict.fromkeys(SAMPLES, 0.0)
    for family in text_string_to_metric_families("".join(_lines(page, tuple(wanted)))):
        for sample in family.samples:
            if name := wanted.get(sample.name):
                totals[name] += sample.value
    return CloudCounts(**totals)


def _lines(page: str, names: tuple[str, ...]) -> list[str]:
    """The lines of these samples alone: a page has a thousand others."""
    return [line for line in page.splitlines(keepends=True) if line.startswith(names)]
