"""Real servers and models that several test files share. They start once in a test run."""

import argparse
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cli.demo import demo_servers, free_ports
from cli.server_process import ServerProcess
from common.cloud_client.pool import CloudPool
from common.config_schema import CommunicationConfig
from common.files.installation import PROJECT
from common.http.client import HTTPClient
from tests.workers import pytest_collection_modifyitems, pytest_configure, pytest_xdist_make_scheduler

__all__ = ["pytest_collection_modifyitems", "pytest_configure", "pytest_xdist_make_scheduler"]  # for pytest to find

if TYPE_CHECKING:
    from cloud.engine.engine import CloudEngine

CLOUD_MODEL = Path(__file__).parent.parent / "models" / "demo-cloud"
CLOUD_CONTEXT = 256
# Small enough that a few prompts with drafts overrun a step, which ends an engine that does not cut the drafts.
STEP_TOKENS = 320


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
