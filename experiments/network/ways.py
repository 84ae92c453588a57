"""The ways of answering that experiments compare, and how an edge server is asked for each. Knows no HTTP."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common.errors import ConfigError
from experiments.harness.servers import AskedServer


class BoundFormula(StrEnum):
    """How edge and cloud work together: which of the formulas of experiments/network/bounds.py holds."""

    ALONE = "alone"
    """The edge without the cloud: no formula."""
    PLAIN = "plain"
    ROUNDS = "rounds"
    ROUNDS_AHEAD = "rounds_ahead"
    CONTINUOUS = "continuous"
    BEST = "best"
    """Whichever of the others is the fastest."""


@dataclass(frozen=True)
class AnswerMode:
    """`name` on the command line and in reports; `fields` of the request; `lossless`: the cloud's own answer."""

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
    """Lossless, with everything that makes it fast but drafting ahead if that is off."""
    return lossless(name, title, form, server, way=way, objective="latency", draft_ahead=ahead)


CLOUD_ONLY = AnswerMode("cloud", "cloud only", BoundFormula.PLAIN, {"mode": "cloud_only"}, lossless=True)
"""What the others are compared with."""

WAYS = {
    way.name: way
    for way in (
        CLOUD_ONLY,
        AnswerMode("edge", "edge only", BoundFormula.ALONE, {"mode": "edge_only"}),
        fast("rounds", "rounds", BoundFormula.ROUNDS_AHEAD, way="rounds"),
        fast("continuous", "continuous", BoundFormula.CONTINUOUS, way="continuous"),
        fast("auto", "lossless, by policy", BoundFormula.BEST, way="auto"),
        AnswerMode("gated", "gated", BoundFormula.ROUNDS_AHEAD, {"use_confidence_check": True}),
        fast("rounds-not-ahead", "rounds, no drafting ahead", BoundFormula.ROUNDS, way="rounds", ahead=False),
        fast("rounds-f4-off", "rounds, F4 off", BoundFormula.ROUNDS_AHEAD, way="rounds", server=AskedServer.PLAIN_EDGE),
        lossless("default", "lossless, as set up", BoundFormula.BEST),
        lossless("default-f4-off", "as set up, F4 off", BoundFormula.BEST, AskedServer.PLAIN_EDGE),
        AnswerMode("direct", "cloud, no edge", BoundFormula.PLAIN, lossless=True, server=AskedServer.CLOUD),
    )
}
WORTH = {
    "drafting ahead": (("rounds", "rounds-not-ahead"),),
    "F4": (("rounds", "rounds-f4-off"), ("default", "default-f4-off")),
}
"""What a part is worth: the speed of the way that has it over that of the way that lacks nothing else."""
ALL = "edge,cloud,direct,rounds,continuous,auto,gated,rounds-not-ahead,rounds-f4-off"
"""`direct` is beside them to show that cloud only, which goes through the edge, is not slowed by it."""


def chosen(names: str) -> list[AnswerMode]:
    """The ways of a comma-separated list, cloud only among them in any case; raises ConfigError for an unknown one."""
    wanted = list(dict.fromkeys([CLOUD_ONLY.name, *names.split(",")]))
    unknown = [name for name in wanted if name not in WAYS]
    if unknown:
        raise ConfigError(f"no way {unknown[0]!r}; there are {', '.join(WAYS)}")
    return [WAYS[name] for name in wanted]
