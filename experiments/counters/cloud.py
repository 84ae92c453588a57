"""What a cloud server has counted between two moments, from its /metrics. Knows no way of answering."""

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
"""Which sample each field is, summed over its other labels."""


class CloudCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Engine steps; prompt and answer tokens computed in them; decode steps of requests, and the seconds they took.

    A step that computes for several requests is one of `steps` and one of each request's `decode_steps`. Seconds are
    the server's own: no network is in them. `prefix` is what requests brought for tokens that were there before them,
    `prefix_computed` what of it no cache held; `drawn` are tokens that came out. `request_seconds`: of requests from
    their arrival in the engine to their last token. `split_...`: tokens of a split model's tail, the positions that it
    computed for them, these times its layers, and the seconds that it took.
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
    """All that the server has counted: vLLM counts a step a moment after its tokens are out, so until it is still."""

    async def read() -> CloudCounts:
        return parsed(await scrape.page(client))

    return await scrape.still(read)


def parsed(page: str) -> CloudCounts:
    """The counts of one page; what is not on it is 0."""
    return CloudCounts(**scrape.totals(page, SAMPLES))
