"""What the edge shows Prometheus of its clouds and segments, read at each scrape from who counts it. Knows no HTTP."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.cloud_client.circuit_breaker import BreakerState
from common.cloud_client.pool import CallOutcome, Cloud, CloudPool
from edge.split.segments import Segments


class CloudsCollector(Collector):
    """The clouds' figures; the label `endpoint` is a URL of the config, so there are as many as that names."""

    def __init__(self, clouds: CloudPool) -> None:
        self._clouds = clouds

    def collect(self) -> Iterator[Metric]:
        yield self._states()
        yield self._calls()
        yield self._counter("breaker_openings", "Times that a cloud was given up.", lambda c: c.breaker.openings)
        yield self._counter("cloud_retries", "Calls made again by the retry rule.", lambda c: c.client.traffic.retries)
        yield self._counter("cloud_bytes_up", "Bytes of bodies sent.", lambda c: c.client.traffic.bytes_up)
        yield self._counter("cloud_bytes_down", "Bytes of bodies received.", lambda c: c.client.traffic.bytes_down)
        load = GaugeMetricFamily("edgecloud_cloud_in_flight", "Calls and streams under way.", labels=["endpoint"])
        for cloud in self._clouds:
            load.add_metric([cloud.url], cloud.in_flight)
        yield load
        said = "Requests that went on with another cloud."
        yield CounterMetricFamily("edgecloud_cloud_failovers", said, self._clouds.failovers)
        said = "Answers for which no cloud could be used."
        yield CounterMetricFamily("edgecloud_degraded_answers", said, self._clouds.degraded_answers)

    def _states(self) -> Metric:
        family = GaugeMetricFamily("edgecloud_breaker_state", "1: in this state.", labels=["endpoint", "state"])
        for cloud in self._clouds:
            for state in BreakerState:
                family.add_metric([cloud.url, state.value], cloud.breaker.state is state)
        return family

    def _calls(self) -> Metric:
        says = "Calls and streams by how they ended."
        family = CounterMetricFamily("edgecloud_cloud_calls", says, labels=["endpoint", "outcome"])
        for cloud in self._clouds:
            for outcome in CallOutcome:
                family.add_metric([cloud.url, outcome.value], cloud.outcomes[outcome])
        return family

    def _counter(self, name: str, says: str, value: Callable[[Cloud], int]) -> Metric:
        family = CounterMetricFamily(f"edgecloud_{name}", says, labels=["endpoint"])
        for cloud in self._clouds:
            family.add_metric([cloud.url], value(cloud))
        return family


class SegmentsCollector(Collector):
    """What the segments of a split model have computed; the label `segment` counts them from 1."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments

    def collect(self) -> Iterator[Metric]:
        steps = CounterMetricFamily("edgecloud_segment_steps", "Steps of segments.", labels=["segment"])
        rows = CounterMetricFamily("edgecloud_segment_rows", "Positions that segments computed.", labels=["segment"])
        for number, (taken, computed) in enumerate(self._segments.work, 1):
            steps.add_metric([str(number)], taken)
            rows.add_metric([str(number)], computed)
        yield steps
        yield rows
