"""The client's side of `GET /stream`: one answer whose tokens come while drafts go. Knows no engine and no policy."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Self, cast

import aiohttp
from aiohttp import WSMsgType

from common.errors import ContextLengthError, EndpointError, OverloadedError, RequestError, VocabularyError
from common.http.client import HTTPClient, Traffic
from common.http.error_replies import Busy
from common.http.request_context import current_request_id
from common.http.websocket import open_websocket
from common.protocol import codec
from common.protocol.stream_frames import DraftFrame, EndFrame, ErrorFrame, ServerFrame, StartFrame, TokensFrame
from common.types import GREEDY, Sampling


class CloudStream:
    """`async with` it, iterate over its frames of tokens, and send `draft`s meanwhile; leaving it ends the answer.

    Everything raises EndpointError when the server cannot be used, RequestError (or a child) when it refuses. Lost is a
    server that shows no frame within `first_byte_timeout` of the start or `idle_timeout` of the one before, or not a
    byte within `idle_timeout`: it is pinged in time to answer. With F4 a connection that had its end is kept for the
    next answer.
    """

    def __init__(
        self,
        client: HTTPClient,
        token_ids: Sequence[int],
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        logprobs: int | None = None,
        use_kv_cache: bool = True,
        vocabulary: str = "",
        traffic: Traffic | None = None,
    ) -> None:
        self._client = client
        self._traffic = traffic or Traffic()
        self._start = StartFrame(
            token_ids=list(token_ids),
            max_tokens=max_tokens,
            sampling=sampling,
            stop=list(stop),
            stop_token_ids=list(stop_token_ids),
            logprobs=logprobs,
            use_kv_cache=use_kv_cache,
            vocabulary=vocabulary,
            keep=client.config.optimized,
            request_id=current_request_id.get(),
        )
        self.end: EndFrame | None = None
        """What came of it, once all tokens are here."""
        self.failure: EndpointError | RequestError | None = None
        """How the server was lost, or why it refused, if it did."""
        self.opened = False
        """Whether the start was sent."""
        self.handshake_seconds = 0.0
        """Seconds for the handshakes of TCP and WebSocket: two round trips; 0 on a connection that had been kept."""
        self._kept = False
        """Whether it is a kept connection of which nothing was heard yet: the server may be closing it just now."""
        self._patience = client.config.first_byte_timeout
        self._ws: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> Self:
        self._count(calls=1)
        try:
            self._ws = await self._client.kept_sockets.take()
            self._kept = self._ws is not None
            if self._ws is None:
                await self._begin_anew()
            else:
                await self._send(self._start)
        except (EndpointError, RequestError) as error:
            self.failure = error
            await self.__aexit__()
            raise
        self.opened = True
        return self

    async def _begin_anew(self) -> None:
        began = time.perf_counter()
        self._kept = False
        self._ws = await open_websocket(self._client, "/stream")
        self.handshake_seconds = time.perf_counter() - began
        await self._send(self._start)

    async def __aexit__(self, *error: object) -> None:
        if self._ws is None:
            return
        if self.end is not None and self._start.keep and not self._ws.closed:
            self._client.kept_sockets.put(self._ws)
        else:
            await self._ws.close()

    async def draft(self, position: int, token_ids: Sequence[int]) -> None:
        """Offers what may follow the first `position` tokens of prompt and answer; it may come too late."""
        await self._send(DraftFrame(position=position, token_ids=list(token_ids)))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokensFrame:
        if self.end is not None:
            raise StopAsyncIteration
        try:
            frame = await self._receive()
            if isinstance(frame, ErrorFrame):
                raise self._refusal(frame)
        except (EndpointError, RequestError) as error:
            self.failure = error
            raise
        if isinstance(frame, EndFrame):
            self.end = frame
            raise StopAsyncIteration
        return frame

    async def _send(self, frame: StartFrame | DraftFrame) -> None:
        assert self._ws is not None
        body = codec.encode(frame, self._client.content_type)
        self._count(bytes_up=len(body))
        try:
            async with asyncio.timeout(self._client.config.idle_timeout):
                if self._client.content_type == codec.MSGPACK:
                    await self._ws.send_bytes(body)
                else:
                    await self._ws.send_str(body.decode())
        except (ConnectionError, TimeoutError) as error:
            # What the server said before it closed is still to be read, and says more than this would.
            if not isinstance(frame, DraftFrame) and not self._kept:
                raise EndpointError(f"{self._client.base_url} broke the connection") from error

    async def _receive(self) -> ServerFrame:
        assert self._ws is not None
        try:
            async with asyncio.timeout(self._patience):
                message = await self._ws.receive()
        except TimeoutError as error:
            raise EndpointError(f"{self._client.base_url} sent nothing for {self._patience:g} s") from error
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
            if self._kept:  # closed while idle, before the start came: nothing was done
                await self._begin_anew()
                return await self._receive()
            raise EndpointError(f"{self._client.base_url} broke the stream (close code {self._ws.close_code})")
        self._kept, self._patience = False, self._client.config.idle_timeout
        data: bytes = message.data.encode() if isinstance(message.data, str) else message.data
        self._count(bytes_down=len(data))
        frame: ServerFrame = self._client.decoded(data, cast(Any, ServerFrame))
        return frame

    def _count(self, **moved: int) -> None:
        for traffic in (self._client.traffic, self._traffic):
            traffic.add(Traffic(**moved))

    def _refusal(self, failure: ErrorFrame) -> EndpointError | RequestError:
        error = failure.error
        if error.type == OverloadedError.type:
            return Busy(f"{self._client.base_url}: {error.message}")
        if error.type != RequestError.type:
            return EndpointError(f"{self._client.base_url}: {error.message}")
        if error.code == VocabularyError.code:
            return VocabularyError(error.message, error.param)
        kind = ContextLengthError if error.code == ContextLengthError.code else RequestError
        return kind(error.message, error.param)
