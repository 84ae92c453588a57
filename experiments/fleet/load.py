"""Simulated edges: each replays recorded drafts at an edge's pace against real clouds, as one answer after another."""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from common.cloud_client.pool import CloudPool
from common.cloud_client.verifier import CloudVerifier, EdgeDrafter
from common.config_schema import CommunicationConfig
from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy
from common.http.request_context import current_priority
from common.protocol.openai import Message
from common.protocol.tokenization import TokenizeReply, TokenizeRequest
from common.types import GREEDY


class DraftedRound(Struct, frozen=True):
    """A draft, and the tokens that the cloud's verdict on it commits. `kept`: those that the edge commits before it;
    `max_tokens`: of the cloud's own, behind the draft.

    Where the edge ends an answer alone, there is neither draft nor verdict.
    """

    draft: list[int]
    committed: list[int]
    kept: list[int] = []
    max_tokens: int = 1

    @property
    def tokens(self) -> int:
        return len(self.kept) + len(self.committed)

    @property
    def drafted(self) -> int:
        """Tokens that the edge draws for this round."""
        return len(self.kept) + len(self.draft)


class DraftedAnswer(Struct, frozen=True):
    """One greedy answer, round by round: its drafts can be sent again, and must have the same verdicts."""

    prompt: list[int]
    rounds: list[DraftedRound]

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.rounds)

    @property
    def token_ids(self) -> list[int]:
        return [token for one in self.rounds for token in (*one.kept, *one.committed)]


class TenantLoad(Struct, frozen=True):
    """A tenant's `edges`, which draft a token in `draft_ms`; `batch`: their requests have a batch's priority."""

    name: str
    weight: float
    edges: int
    draft_ms: float
    batch: bool = False

    @property
    def key(self) -> str:
        return f"fleet-{self.name}"


class RoundTime(Struct, frozen=True):
    """A verified round: when it came, and its seconds as the edge sees them."""

    at: float
    tenant: str
    seconds: float


@dataclass
class FleetTally:
    """What came, of all edges. `began`: by the monotonic clock. `answers`: by tenant and outcome."""

    began: float = field(default_factory=time.monotonic)
    rounds: list[RoundTime] = field(default_factory=list)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    paused: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds for which the edges of a tenant drafted rounds that came to a verdict."""
    failures: Counter[str] = field(default_factory=Counter)
    commits: list[tuple[float, int]] = field(default_factory=list)
    """When tokens of answers came, and how many."""
    turn_seconds: float = 0.0
    """What the clouds' engines took for a round on average, while all asked; without the wait for a place."""

    def record(self, load: TenantLoad, paused: float, seconds: float) -> None:
        self.rounds.append(RoundTime(time.monotonic() - self.began, load.name, seconds))
        self.paused[load.name] += paused

    def commit(self, tokens: int) -> None:
        self.commits.append((time.monotonic() - self.began, tokens))


async def record(
    edge: HTTPClient, clouds: CloudPool, questions: Sequence[str], draft_tokens: int, max_tokens: int
) -> list[DraftedAnswer]:
    """The answers of a real edge and a real cloud to each of `questions`."""
    return [await _recorded(edge, clouds, question, draft_tokens, max_tokens) for question in questions]


async def _recorded(
    edge: HTTPClient, clouds: CloudPool, question: str, draft_tokens: int, max_tokens: int
) -> DraftedAnswer:
    asked = TokenizeRequest(messages=[Message(role="user", content=question)])
    prompt = (await edge.post("/tokenize", asked, TokenizeReply)).tokens
    drafter, verifier = EdgeDrafter(edge), CloudVerifier(clouds)
    committed, rounds, ended = list(prompt), list[DraftedRound](), False
    while not ended and len(committed) - len(prompt) < max_tokens:
        draft = (await drafter.draft(committed, draft_tokens, GREEDY)).token_ids
        verdict = await verifier.verify(committed, draft, GREEDY, 1)
        rounds.append(DraftedRound(draft, verdict.token_ids))
        committed += verdict.token_ids
        ended = verdict.finish_reason is not None
    return DraftedAnswer(prompt, rounds)


class SimulatedEdge:
    """One edge of a tenant, with connections of its own; it knows all clouds, and drafts no token itself."""

    def __init__(self, load: TenantLoad, config: CommunicationConfig, tally: FleetTally, seed: int) -> None:
        self._load, self._config, self._tally = load, config, tally
        self._chance = random.Random(seed)

    async def run(self, answers: Sequence[DraftedAnswer], until: float) -> None:
        """Until this time of the monotonic clock."""
        current_priority.set(int(self._load.batch))
        await asyncio.sleep(self._chance.uniform(0, 1))  # edges do not start together
        async with CloudPool(self._config) as clouds:
            while time.monotonic() < until:
                outcome = await self._answer(clouds, self._chance.choice(answers))
                self._tally.answers[self._load.name, outcome] += 1

    async def _answer(self, clouds: CloudPool, answer: DraftedAnswer) -> str:
        verifier, committed, outcome = CloudVerifier(clouds), list(answer.prompt), "answered"
        for one in answer.rounds:
            pause = await self._draft(one.drafted)
            committed += one.kept
            if not one.committed:
                self._tally.commit(len(one.kept))
                continue
            began = time.perf_counter()
            try:
                verdict = await verifier.verify(committed, one.draft, GREEDY, one.max_tokens)
            except (EndpointError, RequestError) as error:
                await self._draft(answer.tokens - (len(committed) - len(answer.prompt)))  # it goes on alone
                if isinstance(error, Busy):
                    return "refused"
                self._tally.failures[error.message] += 1
                return "failed"
            self._tally.record(self._load, pause, time.perf_counter() - began)
            self._tally.commit(one.tokens)
            if verdict.token_ids != one.committed:
                outcome = "wrong"  # it goes on all the same: another answer would be other work for the cloud
            committed += one.committed
        return outcome

    async def _draft(self, tokens: int) -> float:
        """Takes the time of so many tokens; returns it."""
        seconds = tokens * self._load.draft_ms / 1e3
        await asyncio.sleep(seconds)
        return seconds
