"""A fake cloud for the tests of an edge server, one for each file."""

from collections.abc import AsyncIterator

import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud, serving


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fake() -> AsyncIterator[FakeCloud]:
    async with serving() as made:
        yield made
