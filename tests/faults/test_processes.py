"""Each process of a pair killed or frozen at random moments under load: right answers or errors, and all is back."""

import asyncio
import random
import signal

import psutil
import pytest

from tests.faults.clients import Clients
from tests.faults.conftest import COUNT
from tests.faults.pair import FaultPlace, RunningPair

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

RESTARTED = (FaultPlace.EDGE, FaultPlace.CLOUD, FaultPlace.ENGINE)
FROZEN_SECONDS = (1.0, 12.0)
"""Shorter and longer than the deadlines."""


@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("place", RESTARTED)
async def test_a_killed_process_is_started_again_and_no_client_sees_a_wrong_token(
    pair: RunningPair, clients: Clients, place: FaultPlace, number: int
) -> None:
    process = await at(pair, place)
    await asyncio.sleep(random.Random(f"{place} {number}").uniform(0.5, 4))
    process.kill()
    await until_replaced(pair, place, process)


@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("place", [*RESTARTED, FaultPlace.SUPERVISOR])
async def test_a_frozen_process_goes_on_or_is_replaced_and_no_client_sees_a_wrong_token(
    pair: RunningPair, clients: Clients, place: FaultPlace, number: int
) -> None:
    chance = random.Random(f"{place} {number}")
    process = await at(pair, place)
    await asyncio.sleep(chance.uniform(0.5, 4))
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(chance.uniform(*FROZEN_SECONDS))
    if process.is_running():
        process.send_signal(signal.SIGCONT)


async def at(pair: RunningPair, place: FaultPlace) -> psutil.Process:
    """The process at `place`, once the pair is whole."""
    await asyncio.wait_for(pair.until_ready(), 300)
    process = await asyncio.to_thread(pair.process, place)
    assert process is not None
    return process


async def until_replaced(pair: RunningPair, place: FaultPlace, process: psutil.Process) -> None:
    async with asyncio.timeout(300):
        while (now := await asyncio.to_thread(pair.process, place)) is None or now == process:
            await asyncio.sleep(0.2)
