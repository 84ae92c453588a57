"""Answers that were sampled from a pair of GGUF models, with each position's acceptance by kind of draft."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.policy.sampling import KINDS, Distribution, distribution
from benchmarks.policy.trace import AnswerTrace, PairTimes
from common.config_edge import EdgeModelConfig
from common.errors import ConfigError
from common.types import Sampling
from edge.llama.batch import SequenceTokens
from edge.llama.model import CHUNK, Llama
from edge.llama.sampling import Logits

CONTEXT = 1024
LONGEST = 16
"""Tokens of a draft."""


class SampledAnswer(Struct, frozen=True, forbid_unknown_fields=True):
    """What the cloud's model drew after one prompt, and what the edge's model thinks of it, by position.

    `confidences`: the edge's, the probability of its likeliest token at temperature 1. `accepted`: by kind of draft,
    the chance that the draft's token would have been accepted, given the token that was drawn. `acceptance`: the mean
    of the chance before it was drawn.
    """

    kind: str
    number: int
    sampling: Sampling
    confidences: list[float]
    accepted: dict[str, list[float]]
    acceptance: dict[str, float]

    def seconds(self, draft: str, lengths: Sequence[int], times: PairTimes, round_trip: float) -> float:
        """Expected time of the answer in rounds; the draft after the first i tokens has `lengths[i]` of its own."""
        chances, total = self.accepted[draft], len(self.confidences)
        begins = [1.0] + [0.0] * (total + 1)
        """The chance that a round begins after so many tokens."""
        spent = 0.0
        for at in range(total):
            length, accepted = min(lengths[at], total - at - 1), begins[at]
            spent += accepted * (times.step + round_trip + times.overhead + length * (times.draft + times.verified))
            for place in range(at, at + length):
                begins[place + 1] += accepted * (1 - chances[place])
                accepted *= chances[place]
            begins[at + length + 1] += accepted
        return spent

    def trace(self, kind: str) -> AnswerTrace:
        """The drawn answer with greedy drafts, of which a token is right if it is the one that was drawn.

        What the edge drafts after a wrong token, and the prompt's length, are not known.
        """
        agrees = [chance > 0.5 for chance in self.accepted["greedy"]]
        return AnswerTrace(kind, 1, self.confidences, agrees, {}, self.sampling.temperature)

    def stopping(self, below: float) -> list[int]:
        """Lengths of drafts that end with the token that brings the product of confidences below `below`."""
        found = []
        for at in range(len(self.confidences)):
            product, length = 1.0, 0
            while product >= below and length < LONGEST and at + length < len(self.confidences):
                product *= self.confidences[at + length]
                length += 1
            found.append(length)
        return found


def read(file: Path) -> list[SampledAnswer]:
    """Raises ConfigError for a file that cannot be read or is not one of these."""
    try:
        return msgspec.json.Decoder(SampledAnswer).decode_lines(file.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error


class SampledPair:
    """The cloud's and the edge's model, each in one thread; a sequence for each of `samplings`."""

    def __init__(self, cloud: Path, edge: Path, samplings: Sequence[Sampling]) -> None:
        self._samplings = samplings
        self.cloud, self._edge = (
            Llama(
                EdgeModelConfig(
                    path=str(path), context_length=CONTEXT, sequences=len(samplings), threads=1, threads_batch=1
                )
            )
            for path in (cloud, edge)
        )

    def answers(self, kind: str, number: int, prompt: list[int], tokens: int) -> Iterator[SampledAnswer]:
        """An answer of up to `tokens` for each sampling, all drawn side by side."""
        drawn, of_cloud = self._draw(prompt, tokens, number)
        _read_prompt(self._edge, prompt[:-1])
        for sequence, sampling in enumerate(self._samplings):
            answer = drawn[sequence]
            inputs = [prompt[-1], *answer[:-1]]
            logits = self._edge.decode([SequenceTokens(sequence, inputs, len(inputs))])
            assert logits is not None, "nobody aborts a step"
            yield _judged(kind, number, sampling, answer, of_cloud[sequence], logits)

    def _draw(self, prompt: list[int], tokens: int, seed: int) -> tuple[list[list[int]], list[list[Distribution]]]:
        """The answers, and what each of their tokens was drawn from."""
        rng, model = np.random.default_rng(seed), self.cloud
        _read_prompt(model, prompt[:-1])
        drawn = [list[int]() for _ in self._samplings]
        drawn_from = [list[Distribution]() for _ in self._samplings]
        last = dict.fromkeys(range(len(drawn)), prompt[-1])
        while last:
            rows = model.decode([SequenceTokens(sequence, [token], 1) for sequence, token in last.items()])
            assert rows is not None, "nobody aborts a step"
            for sequence, row in zip(list(last), rows, strict=True):
                p = distribution(row, self._samplings[sequence])
                token = int(rng.choice(len(p), p=p))
                drawn[sequence].append(token)
                drawn_from[sequence].append(p)
                last[sequence] = token
                if token in model.vocabulary.end_tokens or len(drawn[sequence]) == tokens:
                    del last[sequence]
        return drawn, drawn_from


def _read_prompt(model: Llama, prompt: list[int]) -> None:
    """Makes all sequences hold `prompt` and nothing else."""
    model.clear()
    for begin in range(0, len(prompt), CHUNK):
        model.decode([SequenceTokens(0, prompt[begin : begin + CHUNK], 0)])
    for sequence in range(1, model.sequences):
        model.copy(0, sequence, len(prompt))


def _judged(
    kind: str, number: int, sampling: Sampling, answer: list[int], of_cloud: list[Distribution], of_edge: Logits
) -> SampledAnswer:
    accepted = {name: list[float]() for name in KINDS}
    chances = {name: list[float]() for name in KINDS}
    for token, p, logits in zip(answer, of_cloud, of_edge, strict=True):
        q = distribution(logits, sampling)
        for name, joint in ((name, draft(p, q)) for name, draft in KINDS.items()):
            accepted[name].append(round(float(joint[token] / p[token]), 3))
            chances[name].append(float(joint.sum()))
    plain = Sampling(temperature=1.0)
    return SampledAnswer(
        kind=kind,
        number=number,
        sampling=sampling,
        confidences=[round(float(distribution(logits, plain).max()), 3) for logits in of_edge],
        accepted=accepted,
        acceptance={name: round(sum(found) / len(found), 4) for name, found in chances.items()},
    )
