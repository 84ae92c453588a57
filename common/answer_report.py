"""How one answer was made, and what a client gets for one prompt."""

from msgspec import Struct, field

from common.enums import DraftSource, FinishReason, Mode, Provenance


class Collaboration(Struct, kw_only=True):
    """How one answer was made: the `collaboration` object of every response, and a row of every report.

    `way`: the verification mode, null if the cloud took no part. `cloud_steps`: steps of the cloud's engine that drew
    for this answer. `drafted` tokens were verified, `accepted` of them accepted. Of `edge_drawn` tokens, those drafted
    ahead included, `edge_wasted` are not in the answer. `tokens` are those of the answer, up to the one that
    completes a stop string; the other counts are of the work that was done. `longest_wait_ms`: the longest time that it
    waited for one thing, `waited_for`.
    """

    mode: str = Mode.COLLABORATIVE
    way: str | None = None
    lossless: bool = True
    rounds: int = 0
    cloud_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    edge_drawn: int = 0
    edge_wasted: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {str(p): 0 for p in Provenance})
    drafters: dict[str, int] = field(default_factory=lambda: {str(s): 0 for s in DraftSource})
    """The accepted tokens by who proposed them."""
    predicted: int = 0
    """Answer tokens that the request's `prediction` foresaw."""
    confidence_score: float | None = None
    edge_latency_ms: float = 0.0
    cloud_latency_ms: float = 0.0
    longest_wait_ms: float = 0.0
    waited_for: str = ""
    cloud_calls: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose KV the edge found; the cloud, where the edge's model drew nothing."""
    exits: dict[str, int] = {}
    """Mode split: tokens by exit; an exit is named by the number of layers before it."""
    owed: int = 0
    """Mode split: positions of this answer that were pending at its end, summed over later segments and the cloud."""
    cloud_positions: int = 0
    """Mode split: positions for which the cloud computed its layers."""
    explored: int = 0
    """Rounds in which a confident draft was verified all the same, to learn from it (`inference.online`)."""
    routed_to: str | None = None
    """Mode route: who answered, `edge` or `cloud`; of several answers, the first."""
    route_score: float | None = None
    """Mode route: the chance, as the router sees it, that the edge's answer is worse than the cloud's."""
    route_threshold: float | None = None
    """Mode route: from this score on the cloud answers."""
    cost: float | None = None
    """At `communication.prices`; null without prices."""
    mode_because: str | None = None
    """Why it was answered otherwise than the server's defaults or the request say."""
    degraded: str | None = None
    acceptance_rate: float | None = None


class InferenceResult(Struct, kw_only=True):
    """What a client gets for one prompt: the text and how it was made."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    total_latency_ms: float
    collaboration: Collaboration

    @property
    def edge_latency_ms(self) -> float:
        return self.collaboration.edge_latency_ms

    @property
    def cloud_latency_ms(self) -> float:
        return self.collaboration.cloud_latency_ms

    @property
    def acceptance_rate(self) -> float:
        return self.collaboration.acceptance_rate or 0.0

    @property
    def confidence_score(self) -> float:
        return self.collaboration.confidence_score or 0.0
