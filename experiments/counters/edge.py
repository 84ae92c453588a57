"""Reads an edge server's counters from its /metrics and /stats."""

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
"""The sample of each field, summed over its other labels."""


class EngineCounts(msgspec.Struct):
    """The engine's part of /stats: tokens before drafts, those of them with KV in a cache, and drafted tokens."""

    prompt_tokens: float = 0
    reused_prompt_tokens: float = 0
    drafted_tokens: float = 0


class Stats(msgspec.Struct):
    """The part of /stats that is read here."""

    engine: EngineCounts


class EdgeCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counters of an edge server at one moment, or differences between two.

    - `calls`, `rounds`, `cloud_steps`, `drafted`, `accepted_drafts`, `bytes_...`: the cloud's part.
    - `edge`, `accepted`, `recovered`, `bonus`, `cloud`: answer tokens by provenance.
    - `prefix`: tokens before drafts; `prefix_computed`: those without KV in a cache; `drawn`: drafted tokens.
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
    """All counters now; the edge counts an answer before it sends the answer's end."""
    samples, stats = scrape.totals(await scrape.page(client), SAMPLES), await client.get("/stats", Stats)
    engine = stats.engine
    return EdgeCounts(
        **samples,
        prefix=engine.prompt_tokens,
        prefix_computed=engine.prompt_tokens - engine.reused_prompt_tokens,
        drawn=engine.drafted_tokens,
    )
