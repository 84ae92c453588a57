"""Raw connections to a running edge server, and whether it is idle and still answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.conftest import Edge

HOST = "127.0.0.1"
ASK: dict[str, Any] = {"prompt": "What is AI?", "max_tokens": 4, "temperature": 0}


def head(path: str, length: int | str, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def memory(edge: Edge) -> int:
    """Bytes of the server's resident memory."""
    status = Path(f"/proc/{edge.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def engine_stats(edge: Edge) -> dict[str, int]:
    stats: dict[str, Any] = await edge.http.get("/stats", dict)
    return dict(stats["engine"])


async def answers(edge: Edge) -> bool:
    reply: dict[str, Any] = await edge.http.post("/v1/completions", ASK, dict)
    return bool(reply["choices"][0]["text"])


async def is_idle(edge: Edge) -> bool:
    stats = await engine_stats(edge)
    return stats["sequences_lent"] == stats["waiting"] == stats["prompt_tokens_now"] == 0


async def until(edge: Edge, true: Callable[[Edge], Any], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not await true(edge):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def connection(edge: Edge) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    port = int(edge.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
