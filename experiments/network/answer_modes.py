"""The answer modes that the network sweep compares, with the request fields and the server of each."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common.errors import ConfigError
from experiments.harness.servers import AskedServer


class BoundFormula(StrEnum):
    """The formula of experiments/network/bounds.py that limits the speed of a mode."""

    NONE = "none"
    """No formula: the edge without the cloud, and a peer, whose costs are not known."""
    PLAIN = "plain"
    ROUNDS = "rounds"
    ROUNDS_AHEAD = "rounds_ahead"
    CONTINUOUS = "continuous"
    BEST = "best"
    """Whichever of the others is the fastest."""


@dataclass(frozen=True)
class AnswerMode:
    """`name` on the command line and in reports; `fields` of the request.

    `lossless`: every answer must equal the cloud's own.
    """

    name: str
    title: str
    form: BoundFormula
    fields: dict[str, Any] = field(default_factory=dict)
    lossless: bool = False
    server: AskedServer = AskedServer.EDGE


def lossless(
    name: str, title: str, form: BoundFormula, server: AskedServer = AskedServer.EDGE, **fields: Any
) -> AnswerMode:
    return AnswerMode(name, title, form, {"use_confidence_check": False, **fields}, lossless=True, server=server)


def fast(
    name: str, title: str, form: BoundFormula, way: str, ahead: bool = True, server: AskedServer = AskedServer.EDGE
) -> AnswerMode:
    """A lossless mode for the lowest latency; `ahead`: the edge drafts the next round while one is verified."""
    return lossless(name, title, form, server, way=way, objective="latency", draft_ahead=ahead)


CLOUD_ONLY = AnswerMode("cloud", "cloud only", BoundFormula.PLAIN, {"mode": "cloud_only"}, lossless=True)
"""The baseline of every ratio."""

ANSWER_MODES = {
    mode.name: mode
    for mode in (
        CLOUD_ONLY,
        AnswerMode("edge", "edge only", BoundFormula.NONE, {"mode": "edge_only"}),
        fast("rounds", "rounds", BoundFormula.ROUNDS_AHEAD, way="rounds"),
        fast("continuous", "continuous", BoundFormula.CONTINUOUS, way="continuous"),
        fast("auto", "lossless, by policy", BoundFormula.BEST, way="auto"),
        AnswerMode("gated", "gated", BoundFormula.ROUNDS_AHEAD, {"use_confidence_check": True}),
        fast("rounds-not-ahead", "rounds, no drafting ahead", BoundFormula.ROUNDS, way="rounds", ahead=False),
        fast("rounds-f4-off", "rounds, F4 off", BoundFormula.ROUNDS_AHEAD, way="rounds", server=AskedServer.PLAIN_EDGE),
        lossless("default", "lossless, as set up", BoundFormula.BEST),
        lossless("default-f4-off", "as set up, F4 off", BoundFormula.BEST, AskedServer.PLAIN_EDGE),
        AnswerMode("direct", "cloud, no edge", BoundFormula.PLAIN, lossless=True, server=AskedServer.CLOUD),
        AnswerMode("ngram", "n-grams in the cloud", BoundFormula.NONE, server=AskedServer.NGRAM),
        AnswerMode("draft-model", "draft model in the cloud", BoundFormula.NONE, server=AskedServer.DRAFT_MODEL),
        AnswerMode("llama-server", "llama-server", BoundFormula.NONE, server=AskedServer.LLAMA_SERVER),
    )
}
"""What a peer answers is compared with cloud only's, but nothing is promised of it."""
WORTH = {
    "drafting ahead": (("rounds", "rounds-not-ahead"),),
    "F4": (("rounds", "rounds-f4-off"), ("default", "default-f4-off")),
}
"""For each part, pairs of modes that differ in that part alone: with it, without it."""
EDGE_DRAFTER = "auto"
INSTEAD = (CLOUD_ONLY.name, "ngram", "draft-model", "llama-server")
"""What a user might pick in place of an edge that drafts losslessly; the first is there always."""
DEFAULT_MODES = "edge,cloud,direct,rounds,continuous,auto,gated,rounds-not-ahead,rounds-f4-off"
"""`direct` asks the cloud itself: it shows that the edge does not slow down cloud only."""
PEER_MODES = "cloud,auto,gated,ngram,draft-model,llama-server"


def select_modes(names: str) -> list[AnswerMode]:
    """The modes of a comma-separated list, and cloud only in any case. Raises ConfigError for an unknown name."""
    wanted = list(dict.fromkeys([CLOUD_ONLY.name, *names.split(",")]))
    unknown = [name for name in wanted if name not in ANSWER_MODES]
    if unknown:
        raise ConfigError(f"no answer mode {unknown[0]!r}; there are {', '.join(ANSWER_MODES)}")
    return [ANSWER_MODES[name] for name in wanted]
