"""Sends the lines of a batch to an edge over HTTP, and waits for an edge that is away."""

import asyncio
import uuid
from typing import Any

import msgspec

from common.batch.lines import BatchLine, BatchReply, compact
from common.batch.runner import Attempt
from common.errors import EndpointError
from common.http.client import HTTPClient
from common.http.request_context import current_request_id
from common.http.retry import ConnectionBroken, Unreachable

LOST_SECONDS = 600.0
"""An edge that is not back after this time is given up; counted in looks, so that a suspended machine gives up none."""
LOOK_SECONDS = 1.0
SEQUENCES = 4
"""Of an edge that does not tell, because it has several API keys: the default of edge.model.sequences."""


class HttpTarget:
    """An edge, asked by a client that somebody else closes."""

    def __init__(self, client: HTTPClient) -> None:
        self._client = client

    async def capacity(self) -> int:
        """Lines in flight that keep the edge full: one for each of its sequences, and one that waits for each.

        An edge refuses what is more than two that wait for each, if they wait for long.
        """
        stats: dict[str, Any] = await self._client.get("/stats", dict)
        sequences: int = stats.get("engine", {}).get("sequences", SEQUENCES)
        return 2 * sequences

    async def ask(self, line: BatchLine) -> Attempt:
        given = uuid.uuid4().hex
        current_request_id.set(given)
        try:
            reply = await self._client.reply(line.url, line.body)
        except ConnectionBroken:
            raise  # it may be this line that ends the edge
        except EndpointError as error:
            if isinstance(error, Unreachable) or await self._client.healthy():
                raise
            raise Unreachable(error.message) from error
        try:
            body = compact(reply.body)
        except msgspec.DecodeError as error:
            raise EndpointError(f"{self._client.base_url} answered {reply.status} without JSON") from error
        after = reply.headers.get("Retry-After", "")
        request_id = reply.headers.get("X-Request-Id", given)
        return Attempt(BatchReply(reply.status, request_id, body), float(after) if after.isdecimal() else 1.0)

    async def wait_until_back(self) -> None:
        looks = 0
        while not await self._client.healthy():
            looks += 1
            if looks * LOOK_SECONDS >= LOST_SECONDS:
                raise EndpointError(f"{self._client.base_url} was away for {LOST_SECONDS:g} s: continue with --resume")
            await asyncio.sleep(LOOK_SECONDS)
