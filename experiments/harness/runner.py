"""Asks trials, one after another, of servers that run, and counts on both sides of each. Knows no report.

Caches are equally warm. Before anything is counted every configuration answers every question once, so that it does not
matter who was the first to ask it. And right before its turn each question is asked once, for two tokens, of the same
edge and through it of the same cloud, whatever the configuration: so the prompt is known wherever anything is kept, as
in a conversation that goes on, and connections that are kept are there. What a configuration then computes again, it
does for itself.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from common.config_schema import CommunicationConfig, HttpClientConfig
from common.errors import EndpointError, FrameworkError, StartError
from common.http.client import HTTPClient
from common.types import Collaboration
from experiments.counters import cloud as cloud_counts
from experiments.counters import edge as edge_counts
from experiments.harness.load import TimedAnswer, ask, in_turns
from experiments.harness.servers import EdgeSite
from experiments.harness.trials import ExperimentPlan, Trial, TrialResult
from experiments.questions.text_metrics import score
from experiments.questions.workload import Question
from experiments.report.schema import AnswerRow, Counts, NetworkCounts
from experiments.setup.configurations import Configuration, Needs

CLIENT = HttpClientConfig(timeout=120.0, max_retries=0, connection_pool_size=1000)
WARM = {"use_confidence_check": False, "max_tokens": 2}
"""One drafted token, verified: the shortest answer that leaves something in every cache."""


class Runner:
    """Makes trials of a plan. Owns the connections of the clients: `async with`."""

    def __init__(
        self,
        plan: ExperimentPlan,
        questions: Sequence[Question],
        places: Mapping[Needs, EdgeSite],
        keys: CommunicationConfig,
    ) -> None:
        """`keys`: where the API keys of edge and cloud are."""
        self._plan = plan
        self._questions = questions
        self._configurations = {configuration.name: configuration for configuration in plan.configurations}
        self._sides = {needs: _Side(place, keys) for needs, place in places.items()}

    async def __aenter__(self) -> "Runner":
        return self

    async def __aexit__(self, *error: object) -> None:
        for side in self._sides.values():
            await side.close()

    async def settle(self, trial: Trial) -> None:
        """Asks what the trial says and counts nothing; what fails will fail again when it is counted."""
        configuration = self._configurations[trial.configuration]
        side, clients = self._sides[configuration.needs], self._in_cell(trial)

        async def one(question: int) -> None:
            await self._row(side.edge, configuration, question, trial.repeat)

        await in_turns(clients, one, trial.questions)

    async def make(self, trial: Trial) -> TrialResult:
        """Asks what the trial says; an answer that fails is a row that says why.

        Raises StartError when a server does not take requests any more: that is no matter of the configuration.
        """
        configuration = self._configurations[trial.configuration]
        side, clients = self._sides[configuration.needs], self._in_cell(trial)
        failed = await self._warm(side, trial.questions) if self._plan.warm else {}
        before, began = await side.counted(), time.perf_counter()

        async def one(question: int) -> AnswerRow:
            if question in failed:
                return AnswerRow(question=question, repeat=trial.repeat, error=failed[question])
            return await self._row(side.edge, configuration, question, trial.repeat)

        rows = await in_turns(clients, one, trial.questions)
        seconds = time.perf_counter() - began
        if any(row.error for row in rows):
            await side.check()
        counts = _between(before, await side.counted())
        if len(rows) == 1:
            rows = [msgspec.structs.replace(rows[0], counts=counts)]
        return TrialResult(what=trial, seconds=seconds, rows=rows, counts=counts)

    def _in_cell(self, trial: Trial) -> int:
        """Makes the network that of the trial's cell; returns how many clients ask there."""
        cell = self._plan.places[trial.cell]
        if cell.network is not None:
            line = self._sides[self._configurations[trial.configuration].needs].network
            line.delay, line.bandwidth = cell.network.round_trip_ms / 2000, cell.network.mbit * 1e6 / 8
        return cell.clients if self._plan.cells else self._configurations[trial.configuration].clients

    async def _warm(self, side: "_Side", questions: Iterable[int]) -> dict[int, str]:
        """Which of the questions could not even be asked so, and why."""
        failed = {}
        for question in questions:
            try:
                await ask(
                    side.edge,
                    question,
                    self._questions[question].prompt,
                    {**WARM, "messages": self._messages(question)},
                )
            except FrameworkError as error:
                failed[question] = error.message
        return failed

    async def _row(self, edge: HTTPClient, configuration: Configuration, question: int, repeat: int) -> AnswerRow:
        plan, asked = self._plan, self._questions[question]
        said: dict[str, Any] = {"messages": self._messages(question), "max_tokens": plan.max_tokens}
        drawn = {"temperature": plan.temperature, "seed": plan.seed + repeat} if plan.temperature else {}
        try:
            answer = await ask(edge, question, asked.prompt, {**said, **drawn, **configuration.fields})
        except FrameworkError as error:
            return AnswerRow(question=question, repeat=repeat, error=error.message)
        quality = None if asked.answer is None else score(asked.metric, answer.text, asked.answer)
        return row(answer, repeat, quality)

    def _messages(self, question: int) -> list[dict[str, str]]:
        """The question behind earlier turns, which are others with their right answers, always the same."""
        known = [n for n, other in enumerate(self._questions) if other.answer and n != question]
        drawn = random.Random(f"{self._plan.seed} {question}")
        earlier = drawn.sample(known, min(self._plan.turns, len(known)))
        turns = [text for n in earlier for text in (self._questions[n].prompt, self._questions[n].answer or "")]
        texts = [*turns, self._questions[question].prompt]
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


class _Side:
    """The clients of one place: the edge that is asked, the cloud behind it, whose counters are read."""

    def __init__(self, place: EdgeSite, keys: CommunicationConfig) -> None:
        self.edge = HTTPClient(place.edge_url, CLIENT, keys.edge_api_key)
        self._cloud = HTTPClient(place.cloud_url, CLIENT, keys.cloud_api_key)
        self.network = place.network

    async def close(self) -> None:
        await self.edge.close()
        await self._cloud.close()

    async def counted(self) -> Counts:
        network = self.network
        cloud = await cloud_counts.counted(self._cloud)
        return Counts(
            edge=await edge_counts.counted(self.edge),
            cloud=cloud,
            network=NetworkCounts(
                bytes_up=network.up.bytes, bytes_down=network.down.bytes, connections=network.connections
            ),
        )

    async def check(self) -> None:
        """Raises StartError for a server that takes no requests."""
        for name, client in (("edge", self.edge), ("cloud", self._cloud)):
            try:
                await client.check_ready()
            except EndpointError as error:
                raise StartError(f"the {name} server is lost: {error.message}") from error


def row(answer: TimedAnswer, repeat: int, quality: float | None) -> AnswerRow:
    told = answer.told or Collaboration()
    return AnswerRow(
        question=answer.question,
        repeat=repeat,
        text=answer.text,
        quality=quality,
        latency_ms=answer.seconds * 1000,
        first_token_ms=answer.first_token * 1000,
        tokens=answer.tokens,
        provenance=told.tokens,
        cloud_calls=told.cloud_calls,
        cloud_steps=told.cloud_steps,
        rounds=told.rounds,
        drafted=told.drafted,
        accepted=told.accepted,
        bytes_up=told.bytes_up,
        bytes_down=told.bytes_down,
        degraded=told.degraded,
        prompt_tokens=answer.prompt_tokens,
        waited_ms=told.cloud_latency_ms,
    )


def _between(before: Counts, after: Counts) -> Counts:
    one, other = before.network, after.network
    return Counts(
        edge=after.edge - before.edge,
        cloud=after.cloud - before.cloud,
        network=NetworkCounts(
            bytes_up=other.bytes_up - one.bytes_up,
            bytes_down=other.bytes_down - one.bytes_down,
            connections=other.connections - one.connections,
        ),
    )
