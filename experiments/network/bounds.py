"""The highest speed that acceptance, verify time and draft time allow, as formulas.

Each gives the seconds of one answer of N tokens over a network of round trip R, without any software overhead:

    plain        R + N s                      s: seconds of a cloud step that samples one token
    rounds       D + n (R + v)                D: seconds of drafting, n: rounds, v: seconds of a verify
    ... ahead    D/n + n max(D/n, R + v)      drafting the next round while one is verified hides behind it
    continuous   R + m c                      m: steps, c: seconds of a step that verifies a draft

n is N over the acceptance length, m is N over the tokens per step; both follow from the acceptance of the drafts. The
allowed speed over cloud only is the plain seconds over those of the mode. A measured ratio can still be higher: the
round trip of cloud only may be hidden or paid twice, and n, m and D come from the run whose speed they bound.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Mean costs of one answer in seconds; `tokens` (N), `rounds` (n) and `steps` (m) are numbers."""

    round_trip: float
    tokens: float
    step: float
    """s"""
    draft: float = 0.0
    """D, over the whole answer"""
    rounds: float = 0.0
    verify: float = 0.0
    """v"""
    steps: float = 0.0
    draft_step: float = 0.0
    """c"""


def plain_seconds(c: Costs) -> float:
    return c.round_trip + c.tokens * c.step


def rounds_seconds(c: Costs, ahead: bool) -> float:
    """`ahead`: the edge drafts while a verify is on its way. Also valid for gated answers, which have fewer rounds."""
    round_seconds = c.round_trip + c.verify
    if not ahead or not c.rounds:
        return c.draft + c.rounds * round_seconds
    draft = c.draft / c.rounds
    return draft + c.rounds * max(draft, round_seconds)


def continuous_seconds(c: Costs) -> float:
    return c.round_trip + c.steps * c.draft_step
