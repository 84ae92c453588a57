"""What an edge server has counted between two moments, from its /metrics and /stats. Knows no way of answering."""

from typing import Self

import msgspec
from msgspec.structs import asdict

from common.http.client import HTTPClient
from common.types import Provenance
from experiments.counters import scrape

PROVENANCE = {str(p): f'edgecloud_answer_tokens_total{{provenance="{p}"}}' for p in Provenance}
SAMPLES = {
    "answers": "edgecloud_answers_total",
    "rounds": "edgecloud_rounds_total",
    "cloud_steps": "edgecloud_cloud_steps_total",
    "drafted": "edgecloud_drafted_tokens_total",
    "accepted_drafts": "edgecloud_accepted_tokens_total",
    "calls": "edgecloud_cloud_calls_total",
    "bytes_up": "edgecloud_cloud_bytes_up_total",
    "bytes_down": "edgecloud_cloud_bytes_down_total",
    **PROVENANCE,
}
"""Which sample each field is, summed over its other labels."""


class EngineCounts(msgspec.Struct):
    """Of /stats: tokens that drafts were to follow, those of them whose KV was there, and tokens drawn."""

    prompt_tokens: float = 0
    reused_prompt_tokens: float = 0
    drafted_tokens: float = 0


class Stats(msgspec.Struct):
    engine: EngineCounts


class EdgeCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answers, the cloud's part in them as the edge saw it, their tokens by provenance, and what its engine did.

    `prefix`: tokens that drafts were to follow, `prefix_computed` what of them no cache held; `drawn`: tokens drawn.
    """

    answers: float = 0
    rounds: float = 0
    cloud_steps: float = 0
    drafted: float = 0
    accepted_drafts: float = 0
    calls: float = 0
    bytes_up: float = 0
    bytes_down: float = 0
    edge: float = 0
    accepted: float = 0
    recovered: float = 0
    bonus: float = 0
    cloud: float = 0
    prefix: float = 0
    prefix_computed: float = 0
    drawn: float = 0

    def __sub__(self, earlier: Self) -> "EdgeCounts":
        pairs = zip(asdict(self).items(), asdict(earlier).values(), strict=True)
        return EdgeCounts(**{name: now - then for (name, now), then in pairs})


async def counted(client: HTTPClient) -> EdgeCounts:
    """All that the server has counted; an answer is counted before its end is sent."""
    found, stats = scrape.totals(await scrape.page(client), SAMPLES), await client.get("/stats", Stats)
    engine = stats.engine
    return EdgeCounts(
        **found,
        prefix=engine.prompt_tokens,
        prefix_computed=engine.prompt_tokens - engine.reused_prompt_tokens,
        drawn=engine.drafted_tokens,
    )
