"""The pair that other projects' clients are tested with: both servers, with no setting but their ports."""

import argparse
from collections.abc import AsyncIterator

import pytest_asyncio

from cli.demo import demo_servers


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def default_pair() -> AsyncIterator[tuple[str, str]]:
    """The URLs of its edge and its cloud."""
    async with demo_servers(argparse.Namespace(config=None, set=[]), lambda _: None) as urls:
        yield urls


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def edge_url(default_pair: tuple[str, str]) -> str:
    return default_pair[0]
