"""One report for several answers."""

from collections.abc import Sequence

from common.types import Collaboration, DraftSource, Provenance


def combined(reports: Sequence[Collaboration]) -> Collaboration:
    """One report for several choices: counts and times are added, scores averaged."""
    if len(reports) == 1:
        return reports[0]
    longest = max(reports, key=lambda report: report.longest_wait_ms)
    scores = [r.confidence_score for r in reports if r.confidence_score is not None]
    costs = [r.cost for r in reports if r.cost is not None]
    drafted, accepted = sum(r.drafted for r in reports), sum(r.accepted for r in reports)
    return Collaboration(
        mode=reports[0].mode,
        lossless=all(r.lossless for r in reports),
        way=reports[0].way,
        longest_wait_ms=longest.longest_wait_ms,
        waited_for=longest.waited_for,
        rounds=sum(r.rounds for r in reports),
        cloud_steps=sum(r.cloud_steps for r in reports),
        edge_drawn=sum(r.edge_drawn for r in reports),
        edge_wasted=sum(r.edge_wasted for r in reports),
        drafted=drafted,
        accepted=accepted,
        tokens={str(p): sum(r.tokens[p] for r in reports) for p in Provenance},
        drafters={str(s): sum(r.drafters[s] for r in reports) for s in DraftSource},
        predicted=sum(r.predicted for r in reports),
        confidence_score=sum(scores) / len(scores) if scores else None,
        edge_latency_ms=sum(r.edge_latency_ms for r in reports),
        cloud_latency_ms=sum(r.cloud_latency_ms for r in reports),
        cloud_calls=sum(r.cloud_calls for r in reports),
        bytes_up=sum(r.bytes_up for r in reports),
        bytes_down=sum(r.bytes_down for r in reports),
        exits={layer: sum(r.exits[layer] for r in reports) for layer in reports[0].exits},
        owed=sum(r.owed for r in reports),
        cloud_positions=sum(r.cloud_positions for r in reports),
        explored=sum(r.explored for r in reports),
        cached_tokens=sum(r.cached_tokens for r in reports),
        routed_to=reports[0].routed_to,
        route_score=reports[0].route_score,
        route_threshold=reports[0].route_threshold,
        cost=sum(costs) if costs else None,
        mode_because=next((r.mode_because for r in reports if r.mode_because), None),
        degraded=next((r.degraded for r in reports if r.degraded), None),
        acceptance_rate=accepted / drafted if drafted else None,
    )
