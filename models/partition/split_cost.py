"""Predicts what an answer of a split model takes and sends, from where it is cut: a cost model without clock or engine.

Neurosurgeon (Kang et al. 2017, doi 10.1145/3037697.3037698) chooses a cut by predicted times of layers and of the
network. Here exits end most tokens early, and states go up while later segments compute (CE-CoLLM, arXiv 2411.02829).

An answer has T tokens after a prompt of P. Every token runs through the first segment. Exit k is confident of a share
r(k) of all tokens, and a later exit of every token that an earlier one is confident of, so a token passes exit k with
the probability q(k) = 1 - max r of the exits so far, independently of the others. Who needs it after that, a later
segment or the cloud, computes all positions since the last such token in one step. States go up when the first exit is
below its threshold; a token of the cloud costs a round trip, and the part of its upload that no segment hides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.cloud_client import split_traffic as traffic
from common.types import StateEncoding

FURTHER = 0.3
"""Default of `EngineSpeed.further`: assumed, of quantized layers on a CPU; a GPU's is lower."""


@dataclass(frozen=True)
class EngineSpeed:
    """How long a step of an engine takes, all in milliseconds but `further`."""

    layer_ms: float
    """Of one layer for one position."""
    step_ms: float = 0.0
    """Of a step, whatever it computes: the call, scheduling, sampling."""
    further: float = FURTHER
    """A further position of the same step over the first: weights are read once for all, so it is below 1."""

    def ms(self, layers: float, positions: float = 1.0) -> float:
        """A step with so many layers (a head counts as its weights do), for one position or more."""
        return self.step_ms + layers * self.layer_ms * (1 + (positions - 1) * self.further)


@dataclass(frozen=True)
class NetworkSpeed:
    """Round trip in milliseconds, and Mbit/s towards the cloud; what comes down is too little to count."""

    rtt_ms: float
    uplink_mbit: float

    def upload_ms(self, size: float) -> float:
        """The time in which so many bytes go up, without the way itself."""
        return size * 8e-3 / self.uplink_mbit


@dataclass(frozen=True)
class ModelSizes:
    """The model before it is cut: `layers`, numbers in a state and tokens; `head`: its weights over a layer's."""

    layers: int
    hidden: int
    vocabulary: int
    head: float


@dataclass(frozen=True)
class PlannedExit:
    """An exit after so many `layers`: the share of all tokens that it is confident of, and its weights over a layer's.

    With a `rate` of 0 it is never taken, and not computed.
    """

    layers: int
    rate: float = 0.0
    work: float = 0.0


@dataclass(frozen=True)
class Surroundings:
    """All but the cut: speeds of both sides, the network, the encoding of states, tokens of prompt and answer."""

    edge: EngineSpeed
    cloud: EngineSpeed
    network: NetworkSpeed
    encoding: StateEncoding
    prompt: int
    tokens: int


@dataclass(frozen=True)
class CutCost:
    """Means for each token of an answer, its prompt included: milliseconds on either side and of the network, bytes."""

    edge_ms: float
    network_ms: float
    cloud_ms: float
    bytes_up: float
    bytes_down: float
    asks: float
    """The share of tokens that the cloud is asked for."""

    @property
    def total_ms(self) -> float:
        return self.edge_ms + self.network_ms + self.cloud_ms


def predict(model: ModelSizes, exits: Sequence[PlannedExit], around: Surroundings) -> CutCost:
    """The cost of a cut after the first of `exits`, which increase."""
    passes = passing(exits)
    edge = _first_segment_ms(exits[0], around)
    network = cloud = 0.0
    for number in range(around.tokens):
        rest, end = 0.0, exits[0].layers
        for before, exit in zip(passes, exits[1:], strict=False):
            positions = expected_positions(before, around.prompt, number)
            segment = exit.layers - end
            took = around.edge.ms(segment, positions) + exit.work * around.edge.layer_ms
            edge, rest, end = edge + before * took, rest + took, exit.layers
        asked = passes[-1]
        positions = expected_positions(asked, around.prompt, number)
        tail = model.layers - exits[0].layers
        cloud += asked * (around.cloud.ms(tail, positions) + model.head * around.cloud.layer_ms)
        network += asked * (around.network.rtt_ms + _visible_upload_ms(model, passes[0], rest, around, number))
    up, down = _bytes(model, passes[0], passes[-1], around)
    up += (1 - (1 - passes[0]) ** around.tokens) * traffic.open_bytes(around.encoding)
    edge, network, cloud, up, down = (total / around.tokens for total in (edge, network, cloud, up, down))
    return CutCost(edge, network, cloud, up, down, asks=passes[-1])


def edge_alone_ms(model: ModelSizes, around: Surroundings) -> float:
    """Milliseconds a token of the whole model at the edge."""
    return _alone_ms(model, around.edge, around)


def cloud_alone_ms(model: ModelSizes, around: Surroundings) -> float:
    """Milliseconds a token of the whole model in the cloud, which streams its answer after one round trip."""
    return _alone_ms(model, around.cloud, around) + around.network.rtt_ms / around.tokens


def passing(exits: Sequence[PlannedExit]) -> list[float]:
    """For each exit, the share of all tokens that neither it nor an earlier one takes."""
    return [1 - max(exit.rate for exit in exits[: number + 1]) for number in range(len(exits))]


@lru_cache(maxsize=1 << 17)
def expected_positions(share: float, prompt: int, number: int) -> float:
    """The mean of `pending`: what is computed for token `number`, from 0 on, if that token passes."""
    return sum(probability * positions for probability, positions in pending(share, prompt, number))


@lru_cache(maxsize=1 << 17)
def pending(share: float, prompt: int, number: int) -> tuple[tuple[float, float], ...]:
    """How many positions token `number` finds pending where every token passes with the probability `share`.

    Two cases, each with its probability: no earlier token has passed, so the prompt is pending, too; or one has, and
    then the mean distance to the last of these.
    """
    none = (1 - share) ** number
    cases = [(none, float(prompt + number))]
    if none < 1:
        far = (1 - none) / share - number * none  # sum of d q (1 - q)^(d - 1) over d = 1 ... number
        cases.append((1 - none, far / (1 - none)))
    return tuple(cases)


def _first_segment_ms(exit: PlannedExit, around: Surroundings) -> float:
    first = around.edge.ms(exit.layers, around.prompt)
    others = (around.tokens - 1) * around.edge.ms(exit.layers)
    return first + others + around.tokens * exit.work * around.edge.layer_ms


def _alone_ms(model: ModelSizes, speed: EngineSpeed, around: Surroundings) -> float:
    head = model.head * speed.layer_ms
    whole = speed.ms(model.layers, around.prompt) + (around.tokens - 1) * speed.ms(model.layers)
    return whole / around.tokens + head


def _visible_upload_ms(model: ModelSizes, share: float, rest: float, around: Surroundings, number: int) -> float:
    """What is left of the upload when the segments behind the first exit have computed for `rest` milliseconds."""
    row = traffic.row_bytes(model.hidden, around.encoding)
    cases = pending(share, around.prompt, number)
    return sum(chance * max(0.0, around.network.upload_ms(rows * row) - rest) for chance, rows in cases)


@lru_cache(maxsize=1 << 10)
def _bytes(model: ModelSizes, first: float, last: float, around: Surroundings) -> tuple[float, float]:
    """Bytes up and down of a whole answer, with the shares of tokens that pass the first exit and the last."""
    up = down = 0.0
    for number in range(around.tokens):
        up += _bytes_up(model, first, last, around, number)
        positions = max(1, round(expected_positions(last, around.prompt, number)))
        down += last * traffic.token_bytes(number, around.prompt + number, positions, model.vocabulary - 1)
    return up, down


def _bytes_up(model: ModelSizes, first: float, last: float, around: Surroundings, number: int) -> float:
    """The states of a token that passes the first exit, and the question of one that passes the last."""
    end = around.prompt + number
    size = last * traffic.ask_bytes(number, end)
    for chance, rows in pending(first, around.prompt, number):
        whole = math.ceil(rows)
        frames = traffic.states_bytes(end - whole, whole, model.hidden, around.encoding)
        surplus = (whole - rows) * traffic.row_bytes(model.hidden, around.encoding)
        size += first * chance * (frames - surplus)
    return size
