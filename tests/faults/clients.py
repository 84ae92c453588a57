"""Clients that know the right answer token for token, and count what else they see."""

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from common.errors import EndpointError
from common.http.client import HTTPClient
from tests.faults.pair import RunningPair

QUESTIONS = tuple(
    f"<|user|>{text}<|assistant|>"
    for text in ("What is AI?", "Explain deep learning", "Explain quantum computing", "What is gravity?")
)
MAX_TOKENS = 32
WAYS: tuple[dict[str, Any], ...] = (
    {"use_confidence_check": False, "way": "rounds"},
    {"use_confidence_check": False, "way": "continuous"},
    {"mode": "cloud_only"},
)
"""Lossless: an answer that is not degraded is the cloud's own."""
LONGEST_SECONDS = 150.0
"""Longer than any deadline of an answer."""


def body(question: str, way: dict[str, Any]) -> dict[str, Any]:
    fields = {"prompt": question, "max_tokens": MAX_TOKENS, "temperature": 0, "collaboration": {"tokens": True}}
    return {**fields, **way}


async def truth_of(pair: RunningPair) -> dict[str, list[int]]:
    """The cloud's own greedy answer to each question, as token ids."""
    truth = {}
    for question in QUESTIONS:
        asked = {"prompt": question, "max_tokens": MAX_TOKENS, "temperature": 0, "return_token_ids": True}
        reply: dict[str, Any] = await pair.cloud.post("/v1/completions", asked, dict)
        truth[question] = reply["choices"][0]["token_ids"]
    return truth


@dataclass
class Clients:
    """`count` clients that ask one question after the other until `stop`; every answer is checked."""

    pair: RunningPair
    truth: dict[str, list[int]]
    count: int = 8
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What no client may see; empty in the end."""
    _stopping: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self._stopping = False
        self._tasks = [asyncio.create_task(self._ask_on(random.Random(number))) for number in range(self.count)]

    async def stop(self) -> None:
        """Returns when the last answers have ended."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _ask_on(self, chance: random.Random) -> None:
        async with HTTPClient(self.pair.edge.base_url) as edge:
            while not self._stopping:
                question, way = chance.choice(QUESTIONS), chance.choice(WAYS)
                try:
                    async with asyncio.timeout(LONGEST_SECONDS):
                        outcome = await (self._stream if chance.random() < 0.7 else self._whole)(edge, question, way)
                except TimeoutError:
                    outcome = "an answer without end"
                    self.wrong.append(f"{outcome}: {way}")
                self.seen[outcome] += 1
                await asyncio.sleep(0.05 if outcome == "answered" else 0.3)

    async def _whole(self, edge: HTTPClient, question: str, way: dict[str, Any]) -> str:
        try:
            reply: dict[str, Any] = await edge.post("/v1/completions", body(question, way), dict)
        except EndpointError as error:
            return _named(error)
        return self._check(question, reply["choices"][0]["collaboration"]["tokens"], reply["collaboration"])

    async def _stream(self, edge: HTTPClient, question: str, way: dict[str, Any]) -> str:
        tokens, report = list[dict[str, Any]](), dict[str, Any]()
        try:
            async for data in edge.events("/v1/completions", body(question, way) | {"stream": True}):
                event = json.loads(data)
                for choice in event["choices"]:
                    tokens += choice.get("collaboration", {}).get("tokens", [])
                report = event.get("collaboration", report)
        except EndpointError as error:
            self._check_part(question, tokens)
            return _named(error)
        except aiohttp.ClientError:
            self._check_part(question, tokens)
            return "a broken stream"
        if not report:
            self._check_part(question, tokens)
            return "a stream without its end"
        return self._check(question, tokens, report)

    def _check(self, question: str, tokens: list[dict[str, Any]], report: dict[str, Any]) -> str:
        """A whole answer is the cloud's own; one that lost its cloud is it up to there."""
        ids, truth = [token["token_id"] for token in tokens], self.truth[question]
        if report["degraded"]:
            self._check_part(question, tokens)
            return "degraded"
        if ids != truth:
            self.wrong.append(f"{question}: {ids} and not {truth}")
        return "answered"

    def _check_part(self, question: str, tokens: list[dict[str, Any]]) -> None:
        """No token of the cloud is lost or doubled; the edge's own begin where it was lost, and none follows them."""
        sources = [token["source"] for token in tokens]
        alone = sources.index("edge") if "edge" in sources else len(sources)
        ids = [token["token_id"] for token in tokens[:alone]]
        if ids != self.truth[question][:alone] or set(sources[alone:]) - {"edge"}:
            self.wrong.append(f"{question}: {ids} {sources[alone:]} and not {self.truth[question]}")


def _named(error: EndpointError) -> str:
    """The kind of failure; each has come as an error object, an error event, or a broken connection."""
    for kind in ("broke the connection", "cannot reach", "did not answer", "no sign of work"):
        if kind in error.message:
            return kind
    return "an error object"


async def idle(pair: RunningPair) -> dict[str, Any]:
    """The edge's statistics, once it works on nothing."""
    while True:
        with suppress(EndpointError):
            stats: dict[str, Any] = await pair.edge.get("/stats", dict)
            engine = stats["engine"]
            clouds = stats["clouds"]["endpoints"].values()
            if not (engine["sequences_lent"] or engine["waiting"] or any(one["in_flight"] for one in clouds)):
                return stats
        await asyncio.sleep(0.2)
