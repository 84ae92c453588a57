"""Pages of several servers as one: labelled samples that a parser reads, and sums."""

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cloud.replicas.merging import merged_metrics, merged_stats


def page(count: int) -> str:
    registry = CollectorRegistry()
    Counter("asked", "Questions.", ["route"], registry=registry).labels("/verify").inc(count)
    Histogram("seconds", "Time.", buckets=(1.0,), registry=registry).observe(count)
    return generate_latest(registry).decode()


def test_each_sample_has_its_replica_and_each_family_one_head() -> None:
    merged = merged_metrics({"0": page(2), "1": page(3)}).decode()
    families = {family.name: family for family in text_string_to_metric_families(merged)}
    asked = {one.labels["replica"]: one.value for one in families["asked"].samples if one.name == "asked_total"}
    assert asked == {"0": 2, "1": 3}
    assert all(one.labels["route"] == "/verify" for one in families["asked"].samples)
    assert merged.count("# TYPE asked_total counter") == 1
    buckets = [one for one in families["seconds"].samples if one.name == "seconds_bucket"]
    assert {(one.labels["replica"], one.labels["le"]) for one in buckets} >= {("0", "1.0"), ("1", "+Inf")}


def test_counts_are_added_up_and_shares_and_settings_are_not() -> None:
    one = {"sessions": 2, "model": "m", "kv_cache_usage": 0.2, "kv_cache": {"blocks": 5}, "max_draft_tokens": 16}
    two = {"sessions": 3, "model": "m", "kv_cache_usage": 0.4, "kv_cache": {"blocks": 7}, "max_draft_tokens": 16}
    assert merged_stats([one, two]) == {
        "sessions": 5,
        "model": "m",
        "kv_cache_usage": (0.2 + 0.4) / 2,
        "kv_cache": {"blocks": 12},
        "max_draft_tokens": 16,
    }
    assert merged_stats([]) == {}
