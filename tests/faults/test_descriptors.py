"""A server that has no file descriptors left, under load: refusals and errors; with descriptors all is well again."""

import asyncio
import random

import psutil
import pytest

from tests.faults.clients import Clients
from tests.faults.conftest import COUNT
from tests.faults.pair import FaultPlace, RunningPair

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

SPARE = 1
"""Descriptors that are left: fewer than there are clients."""


@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("place", [FaultPlace.EDGE, FaultPlace.CLOUD])
async def test_a_server_without_descriptors_recovers(
    pair: RunningPair, clients: Clients, place: FaultPlace, number: int
) -> None:
    chance = random.Random(f"{place} {number}")
    await asyncio.wait_for(pair.until_ready(), 300)
    server = await asyncio.to_thread(pair.process, place)
    assert server is not None
    await asyncio.sleep(chance.uniform(0.5, 3))
    usual = server.rlimit(psutil.RLIMIT_NOFILE)
    await pair.network.cut()  # its connections have to be made again
    server.rlimit(psutil.RLIMIT_NOFILE, (server.num_fds() + SPARE, usual[1]))
    await asyncio.sleep(chance.uniform(2, 6))
    server.rlimit(psutil.RLIMIT_NOFILE, usual)
    assert server.is_running()
