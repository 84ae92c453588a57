"""Many clients of one cloud at once, and how fast each of them gets its answers."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence

from msgspec import Struct

from common.http.client import HTTPClient
from common.protocol import codec
from experiments.fleet.load import DraftedAnswer, FleetTally

WARM_SECONDS = 2.0
"""Before anything is counted: clients begin within the first second."""
STREAM = "stream"
"""The tenant of streamed answers in a tally."""

Client = Callable[[int, FleetTally], Coroutine[None, None, None]]
"""One of many, by its number: asks until it is cancelled."""


class _StreamedTokens(Struct):
    token_ids: list[int] | None = None


class StreamedIds(Struct):
    """The part of an event of `/v1/completions` that is counted."""

    choices: list[_StreamedTokens] = []


class CapacityPoint(Struct, frozen=True, kw_only=True):
    """What each of `clients` got at once. `speed`: tokens a second of one of them.

    `busy`: the share of a core that the clients themselves took: near 1 they, and not the cloud, were measured.
    `answers`: by outcome.
    """

    clients: int
    speed: float
    busy: float
    answers: Counter[str]


async def stream_answers(cloud: HTTPClient, answers: Sequence[DraftedAnswer], number: int, tally: FleetTally) -> None:
    """Has the cloud write the same answers as a stream, one after another."""
    chance = random.Random(number)
    await asyncio.sleep(chance.uniform(0, 1))  # clients do not start together
    while True:
        answer, found = chance.choice(answers), list[int]()
        body = {"prompt": answer.prompt, "max_tokens": answer.tokens, "temperature": 0}
        async for event in cloud.events("/v1/completions", {**body, "stream": True, "return_token_ids": True}):
            for choice in codec.decode(event, StreamedIds).choices:
                found += choice.token_ids or []
                tally.commit(len(choice.token_ids or []))
        tally.answers[STREAM, "answered" if found == answer.token_ids else "wrong"] += 1


async def measure(client: Client, clients: int, seconds: float) -> CapacityPoint:
    """The speed of so many clients for so long. Raises what one of them raises."""
    tally = FleetTally()
    running = [asyncio.create_task(client(number, tally)) for number in range(clients)]
    try:
        await asyncio.sleep(WARM_SECONDS)
        began, spent = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        took, spent = time.monotonic() - began, time.process_time() - spent
    finally:
        for task in running:
            task.cancel()
        ended = await asyncio.gather(*running, return_exceptions=True)
    if failed := [one for one in ended if isinstance(one, Exception)]:
        raise failed[0]
    return point(tally, clients, began - tally.began, took, spent)


def point(tally: FleetTally, clients: int, began: float, seconds: float, spent: float) -> CapacityPoint:
    """Counts what came from `began` on, by the tally's clock, for so many seconds."""
    tokens = sum(number for at, number in tally.commits if began <= at < began + seconds)
    outcomes: Counter[str] = Counter()
    for (_, outcome), number in tally.answers.items():
        outcomes[outcome] += number
    return CapacityPoint(clients=clients, speed=tokens / seconds / clients, busy=spent / seconds, answers=outcomes)
