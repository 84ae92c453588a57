"""What the edge shows Prometheus of its answers: where their tokens come from, what was wasted. Knows no HTTP."""

from prometheus_client import CollectorRegistry, Counter

from common.types import Collaboration, Provenance


class AnswerMetrics:
    """Counters on `registry`, one such struct per application; whoever ends an answer feeds them with its report."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, says: str) -> Counter:
            return Counter(f"edgecloud_{name}", says, registry=registry)

        tokens = Counter("edgecloud_answer_tokens", "Tokens of answers.", ["provenance"], registry=registry)
        self._tokens = {provenance: tokens.labels(provenance.value) for provenance in Provenance}
        self._answers = counter("answers", "Answers ended, by themselves or by their clients.")
        self._rounds = counter("rounds", "Rounds and streams of clouds.")
        self._steps = counter("cloud_steps", "Steps of clouds' engines that drew for answers.")
        self._drafted = counter("drafted_tokens", "Draft tokens that clouds verified.")
        self._accepted = counter("accepted_tokens", "Draft tokens that clouds accepted.")
        self._drawn = counter("edge_drawn_tokens", "Tokens that the edge drew.")
        self._wasted = counter("edge_wasted_tokens", "Tokens that the edge drew and no answer has.")
        says = "Tokens of a split model's exits, by the layers before them."
        self._exits = Counter("edgecloud_exit_tokens", says, ["exit"], registry=registry)
        self._owed = counter("owed_positions", "Positions that later segments and clouds were spared.")
        self._positions = counter("cloud_positions", "Positions that clouds computed for split models.")

    def ended(self, report: Collaboration) -> None:
        """Takes one answer into account, also one whose client left."""
        self._answers.inc()
        self._rounds.inc(report.rounds)
        self._steps.inc(report.cloud_steps)
        self._drafted.inc(report.drafted)
        self._accepted.inc(report.accepted)
        self._drawn.inc(report.edge_drawn)
        self._wasted.inc(report.edge_wasted)
        for layer, tokens in report.exits.items():
            self._exits.labels(layer).inc(tokens)
        self._owed.inc(report.owed)
        self._positions.inc(report.cloud_positions)
        for provenance, counter in self._tokens.items():
            counter.inc(report.tokens[provenance])
