"""An edge server on a fake cloud, one for each file; a file that needs other settings has its own."""

from collections.abc import AsyncIterator

import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud
from common.http.client import HTTPClient
from tests.support.edge_in_process import edge_of


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(fake: FakeCloud) -> AsyncIterator[HTTPClient]:
    async with edge_of(fake.url) as made:
        yield made
