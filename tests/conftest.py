"""Real servers and models that several test files share. They start once in a test run."""

import argparse
import functools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from cli.demo import demo_servers, free_ports
from cli.supervisor import PROJECT, ServerProcess
from common.cloud_client.pool import CloudPool
from common.config_schema import CommunicationConfig
from common.http.client import HTTPClient

if TYPE_CHECKING:
    from cloud.engine.engine import CloudEngine

CLOUD_MODEL = Path(__file__).parent.parent / "models" / "demo-cloud"
CLOUD_CONTEXT = 256
# Small enough that a few prompts with drafts overrun a step, which ends an engine that does not cut the drafts.
STEP_TOKENS = 320


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker of `make test` a core of its own, which its servers inherit.

    Otherwise the threads of several engines wait for each other's cores, and all tests take longer than on one core.
    """
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How the two workers of `make test` divide the files."""
    return SharedServersScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that share most begin first, since they take longest; the order within a file stays."""
    items.sort(key=lambda item: ["servers", "cloud_engine"].index(group) if (group := shared_by(item.nodeid)) else 2)


@functools.cache
def shared_by_file(path: str) -> str:
    """What a test file shares with others: `servers`, `cloud_engine`, or nothing ("").

    Servers start once, in one worker. Programs write their logs into one folder, so they run in that worker too.
    """
    source = (PROJECT / path).read_text()
    if "servers: Servers" in source or "/end_to_end/" in path:
        return "servers"
    return "cloud_engine" if "cloud_engine: CloudEngine" in source else ""


def shared_by(nodeid: str) -> str:
    return shared_by_file(nodeid.partition("::")[0])


class SharedServersScheduling(LoadScopeScheduling):
    """Whole files for each worker; those that share servers or an engine all for the same one."""

    def _split_scope(self, nodeid: str) -> str:
        return shared_by(nodeid) or nodeid.partition("::")[0]


@pytest.fixture(scope="session")
def demo_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo cloud model in pieces: those of `make setup`, else new ones."""
    folder = PROJECT / "models" / "demo-split"
    if not (folder / "manifest.json").exists():
        from models.partition.partition import partition

        folder = tmp_path_factory.mktemp("pieces") / "demo-split"
        partition(str(CLOUD_MODEL), None, CLOUD_MODEL.parent / "demo-cloud-exits.safetensors", "f32", folder)
    return folder


@dataclass
class Servers:
    """A real cloud (float32, for exactness) and a real edge that uses it."""

    edge_url: str
    cloud_url: str
    edge: HTTPClient
    cloud: HTTPClient
    clouds: CloudPool


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers() -> AsyncIterator[Servers]:
    args = argparse.Namespace(
        config=None, set=["cloud.model.dtype=float32", "cloud.draft_verifier.resident_sessions=32"]
    )
    async with (
        demo_servers(args, lambda _: None) as (edge_url, cloud_url),
        HTTPClient(edge_url) as edge,
        HTTPClient(cloud_url) as cloud,
        CloudPool(CommunicationConfig(cloud_endpoint=cloud_url)) as clouds,
    ):
        yield Servers(edge_url, cloud_url, edge, cloud, clouds)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cloud_engine() -> AsyncIterator["CloudEngine"]:
    """A real engine in this process' care, in float32 and narrow on purpose."""
    from cloud.engine.engine import CloudEngine  # ten seconds of imports that tests of the edge can do without
    from tests.support.engines import started

    args = {"dtype": "float32", "max_model_len": CLOUD_CONTEXT, "max_num_batched_tokens": STEP_TOKENS}
    engine = CloudEngine(str(CLOUD_MODEL), max_draft_tokens=16, args={**args, "kv_cache_memory_bytes": 2**26})
    async with started(engine):
        yield engine


@dataclass
class Edge:
    """A real edge server, a process of its own that has no cloud and answers alone; `pid` is its."""

    url: str
    http: HTTPClient
    pid: int


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def edge() -> AsyncIterator[Edge]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    features = ["use_draft_verify", "use_confidence_check"]
    settings = [
        *(f"inference.features.{name}=false" for name in features),
        "communication.cloud_endpoint=http://127.0.0.1:1",
    ]
    flags = ["--host", "127.0.0.1", "--port", str(port), *[word for setting in settings for word in ("--set", setting)]]
    process = ServerProcess("edge", "start_edge.py", url, flags, PROJECT / "logs" / "edge-alone.log")
    try:
        await process.start()
        await process.wait_ready()
        assert process._process is not None
        async with HTTPClient(url) as client:
            yield Edge(url, client, process._process.pid)
    finally:
        await process.stop()
