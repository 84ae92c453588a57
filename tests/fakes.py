"""Deterministic fakes behind the pipeline's two Protocols: an edge that errs, a cloud that may vanish."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.errors import EndpointError
from common.types import Draft, Sampling, Verdict

END = 0
Model = Callable[[Sequence[int]], int]


def cloud_model(token_ids: Sequence[int]) -> int:
    """The truth: the next token after a context; every 17th or so ends the answer."""
    value = (31 * sum(token_ids) + 7 * len(token_ids)) % 101
    return END if value < 6 else value


def erring_model(every: int) -> Model:
    """The truth, but wrong at positions divisible by `every`."""
    return lambda ids: cloud_model(ids) if len(ids) % every else cloud_model(ids) + 1


def answer_of(model: Model, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What a model answers alone."""
    ids = list(prompt)
    while len(ids) < len(prompt) + max_tokens:
        ids.append(model(ids))
        if ids[-1] == END:
            break
    return ids[len(prompt) :]


@dataclass
class FakeDrafter:
    """An edge model; `confidence` of every token comes from its position."""

    model: Model
    confidence: Callable[[int], float] = lambda position: 1.0
    context: int = 10_000
    calls: list[int] = field(default_factory=list)

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling) -> Draft:
        self.calls.append(limit)
        room = min(limit, self.context - len(token_ids))
        ids = answer_of(self.model, token_ids, room) if room > 0 else []
        confidences = [self.confidence(len(token_ids) + i) for i in range(len(ids))]
        return Draft(ids, confidences, confidences, bool(ids) and ids[-1] == END, 1.0)


@dataclass
class FakeVerifier:
    """A cloud that verifies greedily; it is lost for good after `lost_after` calls."""

    lost_after: int = 10_000
    calls: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    asked: list[list[int]] = field(default_factory=list)

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        self.calls += 1
        if self.calls > self.lost_after:
            raise EndpointError("the cloud is lost")
        self.asked.append(list(draft))
        truth = answer_of(cloud_model, token_ids, len(draft) + max_tokens)
        accepted = 0
        while accepted < min(len(draft), len(truth)) and draft[accepted] == truth[accepted]:
            accepted += 1
        ids = truth if not draft else truth[: accepted + 1]
        return Verdict(ids, accepted, ids[-1] == END, 2.0)
