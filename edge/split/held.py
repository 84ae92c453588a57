"""What the sequences of a split model's segments hold, and how much of it a next answer can go on from.

Kept in the event loop. Pure bookkeeping: the segments' thread does the same to the KV, told by `Begun`, in order.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from common.protocol.prefix_hash import common_prefix
from edge.llama.batch import States


class Begun(NamedTuple):
    """Message: a lease begins; `sequence` holds the first `lengths[i]` positions of `source` in segment i, no others.

    `rows`: arrays of states, each with the array from which its first rows are copied, and how many.
    """

    sequence: int
    source: int
    lengths: tuple[int, ...]
    rows: list[tuple[States, States, int]]


@dataclass(slots=True)
class HeldSequence:
    """One sequence: the tokens of one tenant that its first segment was given, and how far each segment has come."""

    tokens: list[int] = field(default_factory=list)
    """At least those of all positions that the first segment has computed."""
    tenant: str | None = ""
    """None: nobody may find what it holds."""
    held: list[int] = field(default_factory=list)
    """Positions that each segment has computed; a later segment never more than the one before it."""
    states: list[States] = field(default_factory=list)
    """After each segment but the last, [context, H]; the OS commits their memory as it is written."""

    @property
    def computed(self) -> list[int]:
        """The tokens of the positions that the first segment has computed."""
        return self.tokens[: self.held[0]]


class HeldSequences:
    """All sequences of `segments` segments, whose contexts have `length` positions of `width` numbers."""

    def __init__(self, sequences: int, segments: int, length: int, width: int) -> None:
        self._segments = segments
        self._shape = length, width
        self._all = [HeldSequence(held=[0] * segments) for _ in range(sequences)]
        self._idle: dict[int, None] = {}
        """Sequences that are not in use and hold something, the least recently used first."""

    def __getitem__(self, sequence: int) -> HeldSequence:
        return self._all[sequence]

    def reusable(self, sequence: int, wanted: list[int], tenant: str | None) -> int:
        """How many positions an answer to `wanted` finds in `sequence`; 0 if it would lose more than it finds."""
        shared = self._shared(self._all[sequence], wanted, tenant)
        return shared if 2 * shared >= self._all[sequence].held[0] else 0

    def begin(self, sequence: int, wanted: list[int], tenant: str | None) -> Begun:
        """Makes `sequence` hold the longest prefix of `wanted` that any sequence of this tenant holds.

        Also one that is in use, of which it finds what is computed by now. Without a tenant it holds nothing.
        """
        self._idle.pop(sequence, None)
        shared = [self._shared(held, wanted, tenant) for held in self._all]
        source = max(range(len(shared)), key=lambda each: (shared[each], each == sequence))
        source = source if shared[source] else sequence
        taken, own = self._all[source], self._all[sequence]
        lengths = [min(length, shared[source]) for length in taken.held]
        own.tokens, own.tenant, own.held = taken.tokens[: lengths[0]], tenant, lengths
        if not own.states:
            own.states = [np.empty(self._shape, np.float32) for _ in range(max(1, self._segments - 1))]
        pairs = zip(own.states, taken.states, lengths, strict=False)
        rows = [(to, of, count) for to, of, count in pairs if count and source != sequence]
        return Begun(sequence, source, tuple(lengths), rows)

    def end(self, sequence: int, keep: bool, most: int) -> list[int]:
        """The lease on `sequence` has ended, and what it holds may be kept; which sequences are forgotten for that.

        Those not in use hold up to `most` positions together; the least recently used is forgotten first.
        """
        forgotten = [] if keep else [sequence]
        if keep:
            self._idle[sequence] = None
        while sum(self._all[each].held[0] for each in self._idle) > most:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            forgotten.append(oldest)
        for each in forgotten:
            self._all[each] = HeldSequence(held=[0] * self._segments)
        return forgotten

    def _shared(self, held: HeldSequence, wanted: list[int], tenant: str | None) -> int:
        return common_prefix(held.computed, wanted) if held.tenant == tenant is not None else 0
