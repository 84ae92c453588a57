"""The edge's Prometheus metrics: clouds and segments, read at each scrape, and answers, counted as they end."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.cloud_client.circuit_breaker import BreakerState
from common.cloud_client.pool import CallOutcome, Cloud, CloudPool
from common.routing.router import Side
from common.types import Collaboration, DraftSource, Provenance, VerificationMode
from edge.split.segments import Segments


class CloudsCollector(Collector):
    """Metrics of each cloud; the label `endpoint` is its URL in the config."""

    def __init__(self, clouds: CloudPool) -> None:
        self._clouds = clouds

    def collect(self) -> Iterator[Metric]:
        yield self._states()
        yield self._calls()
        yield self._counter(
            "breaker_openings", "Times that a cloud's circuit breaker opened.", lambda c: c.breaker.openings
        )
        yield self._counter("cloud_retries", "Calls repeated after a failure.", lambda c: c.client.traffic.retries)
        yield self._counter("cloud_bytes_up", "Bytes of request bodies.", lambda c: c.client.traffic.bytes_up)
        yield self._counter("cloud_bytes_down", "Bytes of response bodies.", lambda c: c.client.traffic.bytes_down)
        load = GaugeMetricFamily("edgecloud_cloud_in_flight", "Calls and streams in flight.", labels=["endpoint"])
        for cloud in self._clouds:
            load.add_metric([cloud.url], cloud.in_flight)
        yield load
        help_text = "Requests that continued with another cloud."
        yield CounterMetricFamily("edgecloud_cloud_failovers", help_text, self._clouds.failovers)
        help_text = "Answers for which no cloud could be used."
        yield CounterMetricFamily("edgecloud_degraded_answers", help_text, self._clouds.degraded_answers)

    def _states(self) -> Metric:
        family = GaugeMetricFamily(
            "edgecloud_breaker_state", "1 for the breaker's current state, else 0.", labels=["endpoint", "state"]
        )
        for cloud in self._clouds:
            for state in BreakerState:
                family.add_metric([cloud.url, state.value], cloud.breaker.state is state)
        return family

    def _calls(self) -> Metric:
        help_text = "Calls and streams by outcome."
        family = CounterMetricFamily("edgecloud_cloud_calls", help_text, labels=["endpoint", "outcome"])
        for cloud in self._clouds:
            for outcome in CallOutcome:
                family.add_metric([cloud.url, outcome.value], cloud.outcomes[outcome])
        return family

    def _counter(self, name: str, help_text: str, value: Callable[[Cloud], int]) -> Metric:
        family = CounterMetricFamily(f"edgecloud_{name}", help_text, labels=["endpoint"])
        for cloud in self._clouds:
            family.add_metric([cloud.url], value(cloud))
        return family


class SegmentsCollector(Collector):
    """Steps and positions of a split model's segments; the label `segment` counts from 1."""

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


class AnswerMetrics:
    """Counters of answers on `registry`: where their tokens come from, and the tokens that were wasted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help_text: str) -> Counter:
            return Counter(f"edgecloud_{name}", help_text, registry=registry)

        tokens = Counter("edgecloud_answer_tokens", "Tokens of answers.", ["provenance"], registry=registry)
        self._tokens = {provenance: tokens.labels(provenance.value) for provenance in Provenance}
        self._answers = counter("answers", "Answers that ended, also those whose client left.")
        ways = Counter("edgecloud_answers_by_way", "Answers by verification mode.", ["way"], registry=registry)
        modes = (None, VerificationMode.ROUNDS, VerificationMode.CONTINUOUS)
        self._ways = {mode: ways.labels(mode.value if mode else "none") for mode in modes}
        routed = Counter(
            "edgecloud_routed_answers", "Answers of mode route by who gave them.", ["to"], registry=registry
        )
        self._routed = {side: routed.labels(side.value) for side in Side}
        self._rounds = counter("rounds", "Rounds and streams of clouds.")
        self._steps = counter("cloud_steps", "Steps of the clouds' engines for answers.")
        self._drafted = counter("drafted_tokens", "Draft tokens that clouds verified.")
        self._accepted = counter("accepted_tokens", "Draft tokens that clouds accepted.")
        drafters = Counter(
            "edgecloud_drafter_tokens", "Accepted draft tokens by who proposed them.", ["drafter"], registry=registry
        )
        self._drafters = {source: drafters.labels(source.value) for source in DraftSource}
        self._drawn = counter("edge_drawn_tokens", "Tokens that the edge drew.")
        self._wasted = counter("edge_wasted_tokens", "Tokens that the edge drew but that are in no answer.")
        help_text = "Tokens of a split model's exits, by the layers before them."
        self._exits = Counter("edgecloud_exit_tokens", help_text, ["exit"], registry=registry)
        self._pending = counter("owed_positions", "Positions that later segments and clouds did not have to compute.")
        self._positions = counter("cloud_positions", "Positions that clouds computed for split models.")

    def record_answer(self, report: Collaboration) -> None:
        """Counts one answer that has ended, also if its client left."""
        self._answers.inc()
        self._ways[VerificationMode(report.way) if report.way else None].inc()
        if report.routed_to:
            self._routed[Side(report.routed_to)].inc()
        self._rounds.inc(report.rounds)
        self._steps.inc(report.cloud_steps)
        self._drafted.inc(report.drafted)
        self._accepted.inc(report.accepted)
        for source, proposed in self._drafters.items():
            proposed.inc(report.drafters[source])
        self._drawn.inc(report.edge_drawn)
        self._wasted.inc(report.edge_wasted)
        for layer, tokens in report.exits.items():
            self._exits.labels(layer).inc(tokens)
        self._pending.inc(report.owed)
        self._positions.inc(report.cloud_positions)
        for provenance, counter in self._tokens.items():
            counter.inc(report.tokens[provenance])
