"""The supervisor of a real pair is killed, also while another process of it stands still: all of it ends."""

import asyncio
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clients import Clients, truth_of
from tests.faults.conftest import COUNT
from tests.faults.pair import FaultPlace, RunningPair, running_pair

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("frozen", [None, FaultPlace.EDGE, FaultPlace.ENGINE])
async def test_a_pair_ends_with_its_supervisor(tmp_path: Path, frozen: FaultPlace | None, number: int) -> None:
    async with running_pair(tmp_path) as pair:
        clients = Clients(pair, await truth_of(pair))
        clients.start()
        await asyncio.sleep(random.Random(f"{frozen} {number}").uniform(0.5, 4))
        if frozen is not None:
            (await found(pair, frozen)).send_signal(signal.SIGSTOP)
        (await found(pair, FaultPlace.SUPERVISOR)).kill()
        await asyncio.wait_for(pair.until_gone(), 60)
        await clients.stop()
        assert clients.wrong == []


async def found(pair: RunningPair, place: FaultPlace) -> Any:
    process = await asyncio.to_thread(pair.process, place)
    assert process is not None
    return process
