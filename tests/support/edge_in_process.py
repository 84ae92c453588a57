"""Runs a real edge server inside the test's own process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from common import config
from common.http.client import HTTPClient
from common.http_server import HTTPServer
from edge.edge_server import build_app


@asynccontextmanager
async def edge_of(cloud_url: str, *settings: str) -> AsyncIterator[HTTPClient]:
    """A client of an edge that asks the cloud at `cloud_url`; `settings` are as for --set."""
    flags = [f"communication.cloud_endpoint={cloud_url}", "edge.model.sequences=2", *settings]
    server = HTTPServer(build_app(config.load(flags=flags, environment={})), "127.0.0.1", 0)
    await server.start()
    try:
        async with HTTPClient(f"http://127.0.0.1:{server.port}") as client:
            yield client
    finally:
        await server.stop()
