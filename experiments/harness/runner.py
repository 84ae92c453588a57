"""Runs trials one after another on running servers, and reads the servers' counters before and after each.

Caches are equally warm. Before anything is counted, every configuration answers every question once, so that it does
not matter which one was first. Right before each trial, its questions are asked once for two tokens through the same
edge and cloud, whatever the configuration: the prompt is then in every cache, as in a continued conversation, and kept
connections are open. What a configuration computes again after that is its own cost.
"""

import asyncio
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
from experiments.questions.workload import Question
from experiments.report.schema import AnswerRow, Counts, NetworkCounts
from experiments.setup.configurations import Configuration, Needs

CLIENT = HttpClientConfig(timeout=600.0, max_retries=0, connection_pool_size=1000)
"""A large model on a slow machine takes minutes for a long answer."""
WARM = {"use_confidence_check": False, "max_tokens": 2}
"""One drafted and verified token: the shortest answer that fills every cache."""


class Runner:
    """Runs trials of a plan. Owns the clients' connections: use with `async with`."""

    def __init__(
        self,
        plan: ExperimentPlan,
        questions: Sequence[Question],
        sites: Mapping[Needs, EdgeSite],
        keys: CommunicationConfig,
    ) -> None:
        """`keys` has the API keys of edge and cloud."""
        self._plan = plan
        self._questions = questions
        self._configurations = {configuration.name: configuration for configuration in plan.configurations}
        self._clients = {needs: _SiteClients(site, keys) for needs, site in sites.items()}

    async def __aenter__(self) -> "Runner":
        return self

    async def __aexit__(self, *error: object) -> None:
        for clients in self._clients.values():
            await clients.close()

    async def settle(self, trial: Trial) -> None:
        """Runs the trial without recording it; a failure will come again when it is recorded."""
        configuration = self._configurations[trial.configuration]
        site, clients = self._clients[configuration.needs], self._enter_condition(trial)

        async def one(question: int) -> None:
            await self._row(site.edge, configuration, question, trial.repeat)

        await in_turns(clients, one, trial.questions)

    async def run(self, trial: Trial) -> TrialResult:
        """Runs the trial; the row of a failed answer has its error.

        Raises StartError when a server no longer accepts requests, as this is not the configuration's fault.
        """
        configuration = self._configurations[trial.configuration]
        site, clients = self._clients[configuration.needs], self._enter_condition(trial)
        failed = await self._warm(site, trial.questions) if self._plan.warm else {}
        before, began = await site.counted(), time.perf_counter()

        async def one(question: int) -> AnswerRow:
            if question in failed:
                return AnswerRow(question=question, repeat=trial.repeat, error=failed[question])
            return await self._row(site.edge, configuration, question, trial.repeat)

        rows = await in_turns(clients, one, trial.questions)
        seconds = time.perf_counter() - began
        if any(row.error for row in rows):
            await site.check()
        counts = _between(before, await site.counted())
        rows = [await self._judged(row) for row in rows]
        if len(rows) == 1:
            rows = [msgspec.structs.replace(rows[0], counts=counts)]
        return TrialResult(what=trial, seconds=seconds, rows=rows, counts=counts)

    def _enter_condition(self, trial: Trial) -> int:
        """Sets the network of the trial's load condition; returns the number of concurrent clients."""
        condition = self._plan.conditions[trial.cell]
        if condition.network is not None:
            network = self._clients[self._configurations[trial.configuration].needs].network
            network.delay, network.bandwidth = condition.network.round_trip_ms / 2000, condition.network.mbit * 1e6 / 8
        return condition.clients if self._plan.cells else self._configurations[trial.configuration].clients

    async def _warm(self, site: "_SiteClients", questions: Iterable[int]) -> dict[int, str]:
        """Asks the questions to fill the caches; returns the error of each question that failed."""
        failed = {}
        for question in questions:
            try:
                await ask(
                    site.edge,
                    question,
                    self._questions[question].prompt,
                    {**self._asked(question), **WARM},
                )
            except FrameworkError as error:
                failed[question] = error.message
        return failed

    async def _row(self, edge: HTTPClient, configuration: Configuration, question: int, repeat: int) -> AnswerRow:
        plan, asked = self._plan, self._questions[question]
        body: dict[str, Any] = {**self._asked(question), "max_tokens": plan.max_tokens}
        sampling = {"temperature": plan.temperature, "seed": plan.seed + repeat} if plan.temperature else {}
        try:
            answer = await ask(edge, question, asked.prompt, {**body, **sampling, **configuration.fields})
        except FrameworkError as error:
            return AnswerRow(question=question, repeat=repeat, error=error.message)
        return row(answer, repeat)

    async def _judged(self, row: AnswerRow) -> AnswerRow:
        """With its quality, beside the event loop: an answer may be a program that runs for seconds."""
        if row.error:
            return row
        quality = await asyncio.to_thread(self._questions[row.question].score, row.text)
        return msgspec.structs.replace(row, quality=quality)

    def _asked(self, question: int) -> dict[str, Any]:
        """The request's field that holds the question."""
        return (
            {"prompt": self._questions[question].prompt} if self._plan.raw else {"messages": self._messages(question)}
        )

    def _messages(self, question: int) -> list[dict[str, str]]:
        """The question after earlier turns: other questions with their right answers, the same ones each time."""
        answered = [n for n, other in enumerate(self._questions) if other.answer and n != question]
        rng = random.Random(f"{self._plan.seed} {question}")
        earlier = rng.sample(answered, min(self._plan.turns, len(answered)))
        turns = [text for n in earlier for text in (self._questions[n].prompt, self._questions[n].answer or "")]
        texts = [*turns, self._questions[question].prompt]
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


class _SiteClients:
    """The clients of one site: its edge, which answers, and its cloud, whose counters are read."""

    def __init__(self, site: EdgeSite, keys: CommunicationConfig) -> None:
        self.edge = HTTPClient(site.edge_url, CLIENT, keys.edge_api_key)
        self._cloud = HTTPClient(site.cloud_url, CLIENT, keys.cloud_api_key)
        self.network = site.network

    async def close(self) -> None:
        await self.edge.close()
        await self._cloud.close()

    async def counted(self) -> Counts:
        """All counters of edge, cloud and network now."""
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
        """Raises StartError for a server that accepts no requests."""
        for name, client in (("edge", self.edge), ("cloud", self._cloud)):
            try:
                await client.check_ready()
            except EndpointError as error:
                raise StartError(f"the {name} server is lost: {error.message}") from error


def row(answer: TimedAnswer, repeat: int) -> AnswerRow:
    """The report's row of one answer, without its quality."""
    collaboration = answer.collaboration or Collaboration()
    return AnswerRow(
        question=answer.question,
        repeat=repeat,
        text=answer.text,
        latency_ms=answer.seconds * 1000,
        first_token_ms=answer.first_token * 1000,
        tokens=answer.tokens,
        provenance=collaboration.tokens,
        cloud_calls=collaboration.cloud_calls,
        cloud_steps=collaboration.cloud_steps,
        rounds=collaboration.rounds,
        drafted=collaboration.drafted,
        accepted=collaboration.accepted,
        bytes_up=collaboration.bytes_up,
        bytes_down=collaboration.bytes_down,
        degraded=collaboration.degraded,
        prompt_tokens=answer.prompt_tokens,
        waited_ms=collaboration.cloud_latency_ms,
        confidences=answer.confidences,
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
