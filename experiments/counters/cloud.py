"""Reads a cloud server's counters from its /metrics."""

from typing import Self

import msgspec

from common.http.client import HTTPClient
from experiments.counters import scrape

SAMPLES = {
    "steps": "vllm:iteration_tokens_total_count",
    "computed": "vllm:iteration_tokens_total_sum",
    "decode_seconds": "vllm:inter_token_latency_seconds_sum",
    "decode_steps": "vllm:inter_token_latency_seconds_count",
    "verify_seconds": "edgecloud_verify_seconds_sum",
    "verifies": "edgecloud_verify_seconds_count",
    "drafted": "edgecloud_drafted_tokens_total",
    "accepted": "edgecloud_accepted_tokens_total",
    "stream_seconds": 'edgecloud_http_request_seconds_sum{route="/stream"}',
    "prefix": "vllm:prompt_tokens_total",
    "prefix_computed": 'vllm:prompt_tokens_by_source_total{source="local_compute"}',
    "drawn": "vllm:generation_tokens_total",
    "request_seconds": "vllm:e2e_request_latency_seconds_sum",
    "split_tokens": "edgecloud_split_tokens_total",
    "split_computed": "edgecloud_split_positions_computed_total",
    "split_layer_tokens": "edgecloud_split_layer_tokens_total",
    "split_seconds": "edgecloud_split_seconds_total",
}
"""The sample of each field, summed over its other labels."""


class CloudCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counters of a cloud server at one moment, or differences between two. Seconds do not include the network.

    - `steps`: engine steps; `computed`: prompt and answer tokens computed in them.
    - `decode_steps`: of all requests (a step for three requests counts three times); `decode_seconds`: their time.
    - `prefix`: prompt tokens; `prefix_computed`: those that no cache held; `drawn`: generated tokens.
    - `request_seconds`: from a request's arrival in the engine to its last token.
    - `split_...`: tokens of a split model's tail, positions computed for them, positions times layers, and seconds.
    """

    steps: float = 0
    computed: float = 0
    decode_seconds: float = 0
    decode_steps: float = 0
    verify_seconds: float = 0
    verifies: float = 0
    drafted: float = 0
    accepted: float = 0
    stream_seconds: float = 0
    prefix: float = 0
    prefix_computed: float = 0
    drawn: float = 0
    request_seconds: float = 0
    split_tokens: float = 0
    split_computed: float = 0
    split_layer_tokens: float = 0
    split_seconds: float = 0

    def __sub__(self, earlier: Self) -> "CloudCounts":
        return CloudCounts(**{name: getattr(self, name) - getattr(earlier, name) for name in SAMPLES})

    def __add__(self, other: Self) -> "CloudCounts":
        return CloudCounts(**{name: getattr(self, name) + getattr(other, name) for name in SAMPLES})


async def counted(client: HTTPClient) -> CloudCounts:
    """The counters once they no longer change: vLLM counts a step shortly after it sends its tokens."""

    async def read() -> CloudCounts:
        return parsed(await scrape.page(client))

    return await scrape.when_stable(read)


def parsed(page: str) -> CloudCounts:
    """The counters of one metrics page; missing ones are 0."""
    return CloudCounts(**scrape.totals(page, SAMPLES))
