"""What acceptance, verify and draft cost would allow at best. Pure formulas: know no server.

All are the seconds of one answer of N tokens over a network of round trip R, with nothing lost to software:

    plain        R + N s            s: seconds of a step of the cloud that draws one token
    rounds       D + n (R + v)      D: seconds of drafting, n: rounds, v: seconds of a verify
    ... ahead    D/n + n max(D/n, R + v)      drafting for the next round while one is verified hides behind it
    continuous   R + m c            m: steps, c: seconds of a step that verifies a draft

n is N over the acceptance length, m is N over tokens per step: both come from how often the drafts were right. The
allowed speed over cloud only is the plain seconds over those of the way. What is measured can still be above: a round
trip of cloud only may be hidden or doubled, and n, m and D come from the same run as the figure that they bound.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """What one answer takes, as means: seconds, except `tokens` (N), `rounds` (n) and `steps` (m)."""

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
    """`ahead`: drafting goes on while a verify is on its way. Also of gated answers, whose rounds are fewer."""
    each = c.round_trip + c.verify
    if not ahead or not c.rounds:
        return c.draft + c.rounds * each
    one = c.draft / c.rounds
    return one + c.rounds * max(one, each)


def continuous_seconds(c: Costs) -> float:
    return c.round_trip + c.steps * c.draft_step
