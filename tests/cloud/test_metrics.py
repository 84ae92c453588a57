"""The cloud's metrics of draft verification, as Prometheus reads them."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cloud.metrics import CloudMetrics, DraftDropReason, VerifyForm


def samples(registry: CollectorRegistry) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def test_a_verify_is_counted_by_the_outcome_of_its_draft() -> None:
    registry = CollectorRegistry()
    metrics = CloudMetrics(registry)
    metrics.record_verify(VerifyForm.RESIDENT, drafted=4, accepted=2, drawn=3, seconds=0.1)
    metrics.record_verify(VerifyForm.RESIDENT, drafted=4, accepted=4, drawn=5, seconds=0.1)
    metrics.record_verify(
        VerifyForm.STATELESS, drafted=4, accepted=1, drawn=1, seconds=0.1
    )  # the accepted token ended it
    metrics.record_verify(VerifyForm.STATELESS, drafted=0, accepted=0, drawn=8, seconds=0.1)
    found = samples(registry)
    for name, value in (("drafted", 12), ("accepted", 7), ("recovered", 1), ("bonus", 1), ("cloud", 8)):
        assert found[f"edgecloud_{name}_tokens_total", ()] == value
    assert found["edgecloud_acceptance_length_sum", ()] == 3 + 5 + 2
    assert found["edgecloud_verify_seconds_count", ("resident",)] == 2
    assert found["edgecloud_verify_seconds_count", ("continuous",)] == 0


def test_every_label_exists_from_the_start_and_gauges_are_read_at_each_scrape() -> None:
    registry = CollectorRegistry()
    metrics = CloudMetrics(registry)
    held = [1, 2, 3]
    metrics.gauge("sessions", "Sessions held.", lambda: len(held))
    metrics.register_dropped(lambda reason: int(reason is DraftDropReason.LATE))
    metrics.engine_restarts.inc()
    found = samples(registry)
    assert {
        labels[0]: value for (name, labels), value in found.items() if name == "edgecloud_drafts_dropped_total"
    } == {
        "late": 1,
        "foreign": 0,
        "malformed": 0,
        "full": 0,
    }
    assert found["edgecloud_engine_restarts_total", ()] == 1
    assert found["edgecloud_sessions", ()] == 3
    held.clear()
    assert samples(registry)["edgecloud_sessions", ()] == 0
