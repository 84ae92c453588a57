"""Sends questions from concurrent clients and times the streamed answers.

A closed loop: each client sends the next question as soon as it has its answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from common.cloud_client.openai_stream import StreamedChoice
from common.errors import EndpointError
from common.http.client import HTTPClient
from common.protocol import codec
from common.protocol.openai_responses import SourcedTokens, Usage
from common.types import Collaboration

T = TypeVar("T")

CONFIDENCES = 64
"""As many as a router may look at."""


class TimedChoice(StreamedChoice):
    """With what an edge adds: the confidences of its tokens."""

    collaboration: SourcedTokens | None = None

    @property
    def confidences(self) -> list[float]:
        return [] if self.collaboration is None else self.collaboration.confidences


class TimedChunk(msgspec.Struct):
    """One event of a stream: the fields that are read here."""

    choices: list[TimedChoice] = []
    usage: Usage | None = None
    collaboration: Collaboration | None = None


class TimedAnswer(msgspec.Struct, kw_only=True):
    """One streamed answer. `arrivals`: of each piece of text, seconds from the request and length in characters."""

    question: int
    seconds: float
    tokens: int
    text: str
    finish_reason: str
    arrivals: list[tuple[float, int]]
    collaboration: Collaboration | None = msgspec.field(default=None, name="told")
    prompt_tokens: int = 0
    confidences: list[float] = []
    """Of the first tokens, CONFIDENCES at most, if `collaboration.tokens` asks for them."""

    @property
    def first_token(self) -> float:
        """Seconds from the request to the first text, or to the end of an answer without text."""
        return self.arrivals[0][0] if self.arrivals else self.seconds


async def load(
    client: HTTPClient, prompts: Sequence[str], clients: int, fields: Mapping[str, Any], max_tokens: int
) -> list[TimedAnswer]:
    """The answers to all prompts, in their order; `fields` go into every request. Raises the first failure."""

    async def one(question: int) -> TimedAnswer:
        return await ask(client, question, prompts[question], {**fields, "max_tokens": max_tokens})

    return await in_turns(clients, one, range(len(prompts)))


async def in_turns(clients: int, ask_one: Callable[[int], Awaitable[T]], questions: Iterable[int]) -> list[T]:
    """The results of all questions, in their order; at most `clients` are asked at once."""
    left = iter(list(enumerate(questions)))
    results: dict[int, T] = {}

    async def one_client() -> None:
        for turn, question in left:
            results[turn] = await ask_one(question)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(one_client())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [results[turn] for turn in sorted(results)]


async def ask(client: HTTPClient, question: int, prompt: str, fields: Mapping[str, Any]) -> TimedAnswer:
    """Streams one answer, greedy unless `fields` say otherwise. Raises EndpointError for a stream without its usage.

    The prompt is a chat's only turn, unless `fields` have messages; a prompt in `fields` is continued as it is.
    """
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    raw = "prompt" in fields
    asked = {} if raw else {"messages": [{"role": "user", "content": prompt}]}
    body = {**asked, "temperature": 0, **stream, **fields}
    arrivals: list[tuple[float, int]] = []
    texts: list[str] = []
    confidences: list[float] = []
    finish_reason = ""
    last = TimedChunk()
    began = time.perf_counter()
    async for event in client.events(f"/v1/{'' if raw else 'chat/'}completions", body):
        last = codec.decode(event, TimedChunk)
        for choice in last.choices:
            finish_reason = choice.finish_reason or finish_reason
            confidences += choice.confidences[: CONFIDENCES - len(confidences)]
            if text := choice.piece:
                texts.append(text)
                arrivals.append((round(time.perf_counter() - began, 5), len(text)))
    seconds = time.perf_counter() - began
    if last.usage is None:
        raise EndpointError(f"{client.base_url} ended an answer without a usage field")
    return TimedAnswer(
        question=question,
        seconds=seconds,
        tokens=last.usage.completion_tokens,
        text="".join(texts),
        finish_reason=finish_reason,
        arrivals=arrivals,
        collaboration=last.collaboration,
        prompt_tokens=last.usage.prompt_tokens,
        confidences=confidences,
    )


def token_gaps(arrivals: Sequence[tuple[float, int]], token_ends: Sequence[int]) -> Iterator[float]:
    """Seconds between each token and the next, 0 for tokens that arrived together.

    `token_ends`: where each token of the whole text ends, in characters. A token arrives with its last character.
    """
    shown, piece, previous = 0, 0, None
    for end in token_ends:
        while piece < len(arrivals) and shown < end:
            shown += arrivals[piece][1]
            piece += 1
        moment = arrivals[piece - 1][0]
        if previous is not None:
            yield moment - previous
        previous = moment
