"""Simulates thresholds of a split model's exits on traced answers: tokens by exit, the cloud's work, what changes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.simulation import Answers, Numbers


class ExitTrace(NamedTuple):
    """The whole model's greedy answer of n tokens to one prompt, and each exit's prediction of every token."""

    prompt: int
    """Its length in tokens."""
    worth: float
    """The metric of the whole model's answer, 0 to 1."""
    confidence: Numbers
    """[exits, n]"""
    agrees: NDArray[np.bool_]
    """Whether the exit's token is the whole model's, [exits, n]."""

    @property
    def tokens(self) -> int:
        return int(self.agrees.shape[1])

    @property
    def positions(self) -> int:
        """Those that are computed for the answer: its last token needs no computation."""
        return self.prompt + self.tokens - 1


class SimulatedSplit(NamedTuple):
    """An answer with some threshold for each exit."""

    taken: list[int]
    """Tokens of each exit."""
    cloud_tokens: int
    cloud_positions: int
    """That the cloud computes: all up to its last token, at once or later."""
    changed: bool
    """Whether a token differs from the whole model's."""


def replay(trace: ExitTrace, thresholds: Sequence[float]) -> SimulatedSplit:
    """Takes each token from the first exit whose confidence reaches its threshold, else from the cloud.

    Exact up to the first token that differs; the tokens after it are counted as if the answer went on like the model's.
    """
    confident = trace.confidence >= np.array(thresholds)[:, None]
    by = np.where(confident.any(axis=0), confident.argmax(axis=0), -1)
    by_cloud = np.flatnonzero(by < 0)
    same = trace.agrees[by, np.arange(len(by))] | (by < 0)
    taken = [int((by == exit).sum()) for exit in range(len(confident))]
    computed = trace.prompt + int(by_cloud[-1]) if len(by_cloud) else 0
    return SimulatedSplit(taken, len(by_cloud), computed, not same.all())


def simulate(traces: Sequence[ExitTrace], thresholds: Sequence[Sequence[float]], tail_share: float) -> Answers:
    """The simulated answers to all these prompts, one row for each exit's thresholds.

    `tail_share`: of the model's layers, those that the cloud has. Work is in positions of the whole model. An answer
    that differs counts as worth nothing, so simulated quality is a lower bound, and simulated risk an upper one.
    """
    rows = [[replay(trace, each) for trace in traces] for each in thresholds]
    shape = len(thresholds), len(traces)
    cloud = np.array([[each.cloud_tokens for each in row] for row in rows], np.float64)
    computed = np.array([[each.cloud_positions for each in row] for row in rows], np.float64)
    changed = np.array([[each.changed for each in row] for row in rows], np.float64)
    worth = np.broadcast_to(np.array([trace.worth for trace in traces]), shape)
    return Answers(
        tokens=np.broadcast_to(np.array([float(trace.tokens) for trace in traces]), shape),
        cloud_tokens=cloud,
        computed=tail_share * computed,
        calls=cloud,
        worth=(1 - changed) * worth,
        cloud_worth=worth,
        alone=np.broadcast_to(np.array([float(trace.positions) for trace in traces]), shape),
    )
