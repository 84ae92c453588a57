"""The networks of a pair stall, break, and take what they never deliver, at random moments under load."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import pytest

from common.errors import EndpointError
from common.http.client import HTTPClient
from experiments.harness.delay_proxy import DelayProxy
from tests.faults.clients import QUESTIONS, WAYS, Clients, body, idle
from tests.faults.conftest import COUNT
from tests.faults.pair import RunningPair

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


async def stalled(network: DelayProxy, seconds: float) -> None:
    network.stall()
    await asyncio.sleep(seconds)
    network.flow()


async def half_open(network: DelayProxy, seconds: float) -> None:
    """Open connections break, and new ones are accepted by nobody who answers."""
    network.stall()
    await network.cut()
    await asyncio.sleep(seconds)
    await network.cut()
    network.flow()


async def cut_again_and_again(network: DelayProxy, seconds: float) -> None:
    for _ in range(10):
        await network.cut()
        await asyncio.sleep(seconds / 10)


async def slow(network: DelayProxy, seconds: float) -> None:
    network.delay = 0.5
    await asyncio.sleep(seconds)
    network.delay = 0.0


@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("happens", [stalled, half_open, cut_again_and_again, slow])
async def test_the_cloud_behind_a_broken_network(
    pair: RunningPair, clients: Clients, happens: Callable[[DelayProxy, float], Awaitable[None]], number: int
) -> None:
    chance = random.Random(f"{happens.__name__} {number}")
    await asyncio.sleep(chance.uniform(0.5, 4))
    await happens(pair.network, chance.uniform(1, 10))


@pytest.mark.parametrize("number", range(COUNT))
async def test_clients_whose_network_is_gone_hold_nothing_of_the_edge(pair: RunningPair, number: int) -> None:
    """They neither read nor close: their sequences are free when their answers are written."""
    chance = random.Random(number)
    port = int(pair.edge.base_url.rpartition(":")[2])
    async with DelayProxy("127.0.0.1", port) as network, HTTPClient(network.url) as far:
        asking = [asyncio.create_task(read(far, chance)) for _ in range(8)]
        await asyncio.sleep(chance.uniform(0.5, 3))
        network.stall()
        await asyncio.wait_for(idle(pair), 120)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def read(edge: HTTPClient, chance: random.Random) -> None:
    question = body(chance.choice(QUESTIONS), chance.choice(WAYS))
    with contextlib.suppress(EndpointError):
        async for _ in edge.events("/v1/completions", question | {"stream": True}):
            pass
