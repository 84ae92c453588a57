"""Two real engines on Ray behind the front: both work, a killed or hung one is replaced, and no answer notices.

Needs Ray, in the environment that runs the tests: `make test-ray`.
"""

import argparse
import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
import pytest_asyncio

from benchmarks.replicas.service import cloud_process, replicas_of, running, until_all_ready
from cli.server_process import ServerProcess
from common.cloud_client.pool import CloudPool
from common.cloud_client.stream import CloudStream
from common.cloud_client.verifier import CloudVerifier
from common.config_schema import CommunicationConfig, HttpClientConfig
from common.http.client import HTTPClient
from common.protocol.stream_frames import StartFrame
from common.types import GREEDY, VerifyRequest, VerifyResponse

ray = pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="session")]

TOKENS = 120


class Service:
    """A running front with two replicas."""

    def __init__(self, process: ServerProcess, client: HTTPClient) -> None:
        self.process, self.client = process, client

    async def replicas(self) -> dict[str, dict[str, Any]]:
        return await replicas_of(self.client)

    async def served(self) -> list[int]:
        return [one["served"] for one in (await self.replicas()).values()]

    async def losses(self) -> int:
        return sum(one["losses"] for one in (await self.replicas()).values())

    async def replaced(self, losses: int) -> None:
        """Returns when so many replicas were lost, and all are ready again."""
        async with asyncio.timeout(280):
            while await self.losses() < losses:  # the front may not have noticed yet
                await asyncio.sleep(0.05)
            await until_all_ready(self.client)

    async def truth(self, prompt: list[int], tokens: int = TOKENS) -> list[int]:
        """The cloud's own greedy tokens."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
        reply: dict[str, Any] = await self.client.post("/v1/completions", body, dict)
        ids: list[int] = reply["choices"][0]["token_ids"]
        return ids

    async def stream(self, prompt: list[int], kill: signal.Signals | None = None) -> list[int]:
        """The tokens of a stream, whose replica gets the signal after the tenth."""
        tokens: list[int] = []
        sampling = GREEDY.__class__(ignore_eos=True)
        async with CloudStream(self.client, StartFrame(token_ids=prompt, max_tokens=TOKENS, sampling=sampling)) as got:
            async for frame in got:
                assert frame.position == len(prompt) + len(tokens)
                tokens += frame.token_ids
                if kill and len(tokens) >= 10:
                    (busy,) = [one for one in (await self.replicas()).values() if one["in_flight"]]
                    os.kill(busy["pid"], kill)
                    kill = None
        return tokens


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service() -> AsyncIterator[Service]:
    process = cloud_process(argparse.Namespace(config=None, set=[]), 2)
    async with running([process], print), HTTPClient(process.url, HttpClientConfig(timeout=300)) as client:
        yield Service(process, client)


async def test_both_replicas_work_and_a_prompt_returns_to_the_one_that_holds_it(service: Service) -> None:
    prompts = [[10 + number, *range(100, 230)] for number in range(8)]
    for prompt in prompts:
        await service.client.post("/verify", VerifyRequest(new_token_ids=prompt), VerifyResponse)
    first = await service.served()
    assert min(first) > 0
    await asyncio.sleep(1)  # for the KV events
    before = [one["prefix_cache_hits"] for one in (await service.replicas()).values()]
    for prompt in prompts:
        await service.client.post("/verify", VerifyRequest(new_token_ids=prompt), VerifyResponse)
    await asyncio.sleep(1)
    after = [one["prefix_cache_hits"] for one in (await service.replicas()).values()]
    assert sum(after) - sum(before) == len(prompts) * 128


async def test_a_killed_replicas_stream_goes_on_and_ray_starts_it_again(service: Service) -> None:
    prompt = [30, 40, 50]
    wanted, losses = await service.truth(prompt), await service.losses()
    for number in (1, 2):
        assert await service.stream(prompt, signal.SIGKILL) == wanted
        await service.replaced(losses + number)
    assert await service.losses() == losses + 2


async def test_a_killed_replicas_session_goes_on_with_another_one(service: Service) -> None:
    wanted, committed = await service.truth([60, 61, 62], 24), [60, 61, 62]
    config, losses = CommunicationConfig(cloud_endpoint=service.client.base_url), await service.losses()
    async with CloudPool(config) as clouds:
        verifier = CloudVerifier(clouds)
        before = await service.served()
        while len(committed) < 27:
            sampling = GREEDY.__class__(ignore_eos=True)
            verdict = await verifier.verify(committed, wanted[len(committed) - 3 :][:4], sampling, 1)
            committed += verdict.token_ids
            if len(committed) in range(12, 17):
                after = await service.served()
                name = max(range(2), key=lambda at: after[at] - before[at])
                os.kill((await service.replicas())[str(name)]["pid"], signal.SIGKILL)
    assert committed[3:27] == wanted
    await service.replaced(losses + 1)


async def test_a_replica_that_stands_still_is_killed_and_its_stream_goes_on(service: Service) -> None:
    prompt = [33, 44, 55]
    wanted, losses = await service.truth(prompt), await service.losses()
    assert await asyncio.wait_for(service.stream(prompt, signal.SIGSTOP), 120) == wanted
    await service.replaced(losses + 1)


async def test_a_rolling_update_replaces_both_and_refuses_nothing(service: Service) -> None:
    old = {name: one["pid"] for name, one in (await service.replicas()).items()}
    wanted = await service.truth([70, 71], 20)
    assert service.process._process is not None
    service.process._process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(290):
        while any(one["pid"] == old[name] for name, one in (await service.replicas()).items()):
            assert await service.truth([70, 71], 20) == wanted
    await asyncio.wait_for(until_all_ready(service.client), 280)


async def test_nothing_is_left_of_a_front_that_is_killed(service: Service) -> None:
    assert service.process._process is not None
    front = psutil.Process(service.process._process.pid)
    family = front.children(recursive=True)
    assert len(family) > 6
    front.kill()
    async with asyncio.timeout(60):
        while any(_runs(one) for one in family):
            await asyncio.sleep(0.2)


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
