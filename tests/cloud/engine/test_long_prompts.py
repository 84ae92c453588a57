"""A real engine in a long step is not lost, unless it is stopped or the supervisor cannot see it compute."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import pytest_asyncio
from vllm.sampling_params import SamplingParams

from cloud.engine.engine import CloudEngine
from cloud.engine.process_tree import ProcessTree
from cloud.engine.supervisor import EngineSupervisor, SupervisorTiming
from common.errors import EngineError
from models.random_model import random_model
from tests.support.engines import started

CONTEXT = 4096
TIMING = SupervisorTiming(watch=0.05, hang=0.1)
"""Lost after 0.3 s of silence; the step of a whole context takes several times as long."""


class Unrestarted:
    """Passes everything on to an engine that runs, but never ends or starts it; `blind`: it is not seen to compute."""

    def __init__(self, engine: CloudEngine, blind: bool = False) -> None:
        self.check_health, self.ping = engine.check_health, engine.ping
        self.computing = (lambda: False) if blind else engine.computing
        self.start_progress, self.steps = engine.start_progress, engine.steps

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def kill(self) -> None:
        pass


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine() -> AsyncIterator[CloudEngine]:
    with random_model(width=512, layers=12, context=CONTEXT) as folder:
        args = {"dtype": "float32", "max_model_len": CONTEXT, "max_num_batched_tokens": CONTEXT}
        slow = CloudEngine(str(folder), args={**args, "kv_cache_memory_bytes": 2**29, "enable_prefix_caching": False})
        async with started(slow):
            yield slow


@asynccontextmanager
async def watched(engine: CloudEngine, blind: bool = False) -> AsyncIterator[tuple[EngineSupervisor, list[str]]]:
    """The supervisor of a running engine, and a list that gets an entry at each loss."""
    losses: list[str] = []
    supervisor = EngineSupervisor(Unrestarted(engine, blind), TIMING, lambda: losses.append("lost"))
    running = asyncio.create_task(supervisor.run())
    try:
        await supervisor.wait_up()
        yield supervisor, losses
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def read(engine: CloudEngine, supervisor: EngineSupervisor) -> int:
    """Has the engine read a prompt that fills its context; the number of tokens that it then draws."""
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, detokenize=False)
    with supervisor.using():
        async with aclosing(engine.generate([7] * (CONTEXT - 1), params)) as outputs:
            async for output in outputs:
                return len(output.outputs[0].token_ids)
    return 0


async def test_an_engine_in_a_long_step_is_not_lost(engine: CloudEngine) -> None:
    async with watched(engine) as (supervisor, losses):
        assert await read(engine, supervisor) == 1
        assert losses == []


async def test_one_that_cannot_be_seen_to_compute_is_lost(engine: CloudEngine) -> None:
    """Negative control of the test above: the step is long enough for a loss."""
    async with watched(engine, blind=True) as (supervisor, losses):
        with suppress(EngineError):
            await read(engine, supervisor)
        assert losses


async def test_one_that_is_stopped_in_a_long_step_is_lost(engine: CloudEngine) -> None:
    processes = engine._processes
    assert isinstance(processes, ProcessTree)
    async with watched(engine) as (supervisor, losses):
        reading = asyncio.create_task(read(engine, supervisor))
        await asyncio.sleep(0.3)
        try:
            for process in processes._known:
                process.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(20):
                while not losses:
                    await asyncio.sleep(0.01)
            with suppress(EngineError):
                await reading
        finally:
            for process in processes._known:
                process.send_signal(signal.SIGCONT)
