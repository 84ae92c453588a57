"""The ways of answering that experiments compare, and how an edge server is asked for each. Knows no HTTP."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common.errors import ConfigError


class Server(StrEnum):
    """Who is asked."""

    EDGE = "edge"
    PLAIN_EDGE = "plain_edge"
    """An edge with F4 off."""
    CLOUD = "cloud"


class Form(StrEnum):
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
class Way:
    """`name` on the command line and in reports; `fields` of the request; `lossless`: the cloud's own answer."""

    name: str
    title: str
    form: Form
    fields: dict[str, Any] = field(default_factory=dict)
    lossless: bool = False
    server: Server = Server.EDGE


def lossless(name: str, title: str, form: Form, server: Server = Server.EDGE, **fields: Any) -> Way:
    return Way(name, title, form, {"use_confidence_check": False, **fields}, lossless=True, server=server)


def fast(name: str, title: str, form: Form, way: str, ahead: bool = True, server: Server = Server.EDGE) -> Way:
    """Lossless, with everything that makes it fast but drafting ahead if that is off."""
    return lossless(name, title, form, server, way=way, objective="latency", draft_ahead=ahead)


CLOUD_ONLY = Way("cloud", "cloud only", Form.PLAIN, {"mode": "cloud_only"}, lossless=True)
"""What the others are compared with."""

WAYS = {
    way.name: way
    for way in (
        CLOUD_ONLY,
        Way("edge", "edge only", Form.ALONE, {"mode": "edge_only"}),
        fast("rounds", "rounds", Form.ROUNDS_AHEAD, way="rounds"),
        fast("continuous", "continuous", Form.CONTINUOUS, way="continuous"),
        fast("auto", "lossless, by policy", Form.BEST, way="auto"),
        Way("gated", "gated", Form.ROUNDS_AHEAD, {"use_confidence_check": True}),
        fast("rounds-not-ahead", "rounds, no drafting ahead", Form.ROUNDS, way="rounds", ahead=False),
        fast("rounds-f4-off", "rounds, F4 off", Form.ROUNDS_AHEAD, way="rounds", server=Server.PLAIN_EDGE),
        lossless("default", "lossless, as set up", Form.BEST),
        lossless("default-f4-off", "as set up, F4 off", Form.BEST, Server.PLAIN_EDGE),
        Way("direct", "cloud, no edge", Form.PLAIN, lossless=True, server=Server.CLOUD),
    )
}
WORTH = {
    "drafting ahead": (("rounds", "rounds-not-ahead"),),
    "F4": (("rounds", "rounds-f4-off"), ("default", "default-f4-off")),
}
"""What a part is worth: the speed of the way that has it over that of the way that lacks nothing else."""
ALL = "edge,cloud,direct,rounds,continuous,auto,gated,rounds-not-ahead,rounds-f4-off"
"""`direct` is beside them to show that cloud only, which goes through the edge, is not slowed by it."""


def chosen(names: str) -> list[Way]:
    """The ways of a comma-separated list, cloud only among them in any case; raises ConfigError for an unknown one."""
    wanted = list(dict.fromkeys([CLOUD_ONLY.name, *names.split(",")]))
    unknown = [name for name in wanted if name not in WAYS]
    if unknown:
        raise ConfigError(f"no way {unknown[0]!r}; there are {', '.join(WAYS)}")
    return [WAYS[name] for name in wanted]
