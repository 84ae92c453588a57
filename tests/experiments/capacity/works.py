"""What clients of a made-up pair do, for the tests of a capacity."""

from experiments.capacity.model import ClientWork
from experiments.fleet.load import DraftedAnswer, DraftedRound

EIGHT = ClientWork([DraftedAnswer([5], [DraftedRound([1] * 8, [1] * 9), DraftedRound([1] * 8, [1] * 9)])], 0.0)
"""Drafts that take no time, all accepted."""
UNEVEN = [
    DraftedAnswer([5], [DraftedRound([1] * 3, [1] * 4), DraftedRound([1] * 6, [1] * 2)]),
    DraftedAnswer([5], [DraftedRound([1] * 8, [1] * 9, [1] * 5), DraftedRound([], [], [1] * 2)]),
]
"""Two rounds of one answer, one round and an end without a verify of another."""
