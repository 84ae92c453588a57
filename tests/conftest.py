"""Real servers and models that several test files share. They start once in a test run."""

import argparse
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest_asyncio

from common.connection import HTTPClient
from common.demo import demo_servers


@dataclass
class Servers:
    """A real cloud (float32, for exactness) and a real edge that uses it."""

    edge_url: str
    cloud_url: str
    edge: HTTPClient
    cloud: HTTPClient


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers() -> AsyncIterator[Servers]:
    args = argparse.Namespace(config=None, set=["cloud.model.dtype=float32"])
    async with (
        demo_servers(args, lambda _: None) as (edge_url, cloud_url),
        HTTPClient(edge_url) as edge,
        HTTPClient(cloud_url) as cloud,
    ):
        yield Servers(edge_url, cloud_url, edge, cloud)
