"""An edge in this process whose split model asks a fake cloud."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from common import config
from common.cloud_client.pool import CloudPool
from common.http.client import HTTPClient
from edge.api import startup
from edge.split.cloud_tail import SplitClouds
from edge.split.engine import EdgeInferenceEngine
from tests.support.edge_in_process import edge_of
from tests.support.split.fake_split_cloud import NOWHERE, FakeSplitCloud


@asynccontextmanager
async def split_edge(cloud: FakeSplitCloud, manifest: Path, *settings: str) -> AsyncIterator[HTTPClient]:
    """A client of it; `settings` as on the command line."""

    def split_engine(loaded: config.Config, clouds: CloudPool) -> EdgeInferenceEngine:
        return EdgeInferenceEngine(loaded, clouds, SplitClouds(clouds, cast(Any, lambda client: cloud)))

    async with AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patched:  # only for the start: other edges have the real one
            patched.setattr(startup, "EdgeInferenceEngine", split_engine)
            edge = edge_of(NOWHERE, f"edge.split.manifest={manifest}", *settings)
            client = await stack.enter_async_context(edge)
        yield client
