"""One pair for all faults of a run, and clients that ask it meanwhile."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.clients import Clients, idle, truth_of
from tests.faults.pair import FaultPlace, RunningPair, running_pair

COUNT = int(os.environ.get("FAULT_COUNT", "1"))
"""How often each fault happens."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningPair]:
    async with running_pair(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def truth(pair: RunningPair) -> dict[str, list[int]]:
    return await truth_of(pair)


@pytest.fixture
async def clients(pair: RunningPair, truth: dict[str, list[int]]) -> AsyncIterator[Clients]:
    """Eight clients under way. At the end all have seen only right answers and errors, and nothing is left behind."""
    asking = Clients(pair, truth)
    asking.start()
    yield asking
    await asyncio.wait_for(pair.until_ready(), 300)
    before = asking.seen["answered"]
    while asking.seen["answered"] < before + 8:
        await asyncio.sleep(0.1)
    await asyncio.wait_for(asking.stop(), 200)
    print(dict(asking.seen))
    assert asking.wrong == []
    await asyncio.wait_for(idle(pair), 60)
    await asyncio.wait_for(_without_leaks(pair), 60)


async def _without_leaks(pair: RunningPair) -> None:
    """Returns when the pair has its usual processes, and its servers their usual files and threads."""
    while not await asyncio.to_thread(_usual, pair):
        await asyncio.sleep(0.5)


def _usual(pair: RunningPair) -> bool:
    edge, cloud = pair.process(FaultPlace.EDGE), pair.process(FaultPlace.CLOUD)
    if edge is None or cloud is None:
        return False
    processes = len(pair.processes())
    return processes <= USUAL_PROCESSES and edge.num_fds() < USUAL_FILES and cloud.num_fds() < USUAL_FILES


USUAL_PROCESSES = 12
"""Supervisor, two watching shells, edge with its template, cloud with its engine, worker, tracker and template."""
USUAL_FILES = 80
"""Of a server that works on nothing; each of hundreds of connections that were left open would be one more."""
