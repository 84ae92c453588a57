"""An edge server as a deployment starts it: its command, folder and environment, until SIGTERM."""

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from cli.demo import free_ports
from common.config_values import Secret
from common.errors import EndpointError
from common.http.client import HTTPClient


@asynccontextmanager
async def running_edge(
    folder: Path, variables: Mapping[str, str], command: Sequence[str] = ("start_edge.py",), api_key: str = ""
) -> AsyncIterator[HTTPClient]:
    """A client of a ready edge that was started in `folder` with these variables alone; it must end well."""
    (port,) = free_ports(1)
    given = {"PATH": os.environ["PATH"], "EDGECLOUD_EDGE__SERVER__PORT": str(port), **variables}
    with tempfile.TemporaryFile("w+") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=folder, env=given, stderr=log)
        try:
            async with HTTPClient(f"http://127.0.0.1:{port}", api_key=Secret(api_key)) as client:
                if not await _is_ready(client, process):
                    log.seek(0)
                    raise AssertionError(f"the edge has ended: {log.read()}")
                yield client
            process.terminate()
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _is_ready(client: HTTPClient, process: Process) -> bool:
    """Waits until the edge is ready, or has ended."""
    while process.returncode is None:
        try:
            await client.check_ready()
            return True
        except EndpointError:
            await asyncio.sleep(0.1)
    return False
