"""Receives one answer over a cloud's `GET /stream` while sending drafts for it."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Self, cast

import aiohttp
from aiohttp import WSMsgType
from msgspec.structs import replace

from common.decoding.progress import waiting
from common.errors import (
    ContextLengthError,
    EndpointError,
    GrammarError,
    OverloadedError,
    RequestError,
    VocabularyError,
)
from common.http.client import HTTPClient
from common.http.error_replies import Busy
from common.http.request_context import current_request_id
from common.http.traffic import Traffic
from common.http.websocket import open_websocket
from common.protocol import codec
from common.protocol.stream_frames import DraftFrame, EndFrame, ErrorFrame, ServerFrame, StartFrame, TokensFrame
from common.tracing.context import current_traceparent


class CloudStream:
    """Use `async with`, iterate over its TokensFrames, and send `draft`s meanwhile; leaving it ends the answer.

    All methods raise EndpointError when the server cannot be used, RequestError (or a child) when it refuses. The
    server is lost if it sends nothing and answers no ping for `idle_timeout`: a frame may take long, because the
    server's engine may have a long prompt to read. With F4 the connection is kept for the next answer after an end.
    """

    def __init__(self, client: HTTPClient, start: StartFrame, traffic: Traffic | None = None) -> None:
        """`keep`, `request_id`, `traceparent` of `start` are set here; the bytes of frames count in `traffic`, too."""
        self._client = client
        self._traffic = traffic or Traffic()
        names: dict[str, str | None] = {
            "request_id": current_request_id.get(),
            "traceparent": current_traceparent.get() or None,
        }
        self._start = replace(start, keep=client.config.optimized, **names)
        self.end: EndFrame | None = None
        """The last frame, once all tokens were received."""
        self.failure: EndpointError | RequestError | None = None
        """The error that ended the stream, if one did."""
        self.opened = False
        """Whether the start frame was sent."""
        self.handshake_seconds = 0.0
        """Seconds for the TCP and WebSocket handshakes, two round trips; 0 on a connection that was kept."""
        self._kept = False
        """Whether the connection was kept and nothing was received since: the server may be closing it."""
        self._ws: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> Self:
        self._count(calls=1)
        with waiting("the cloud's stream to open"):
            await self._open()
        self.opened = True
        return self

    async def _open(self) -> None:
        try:
            self._ws = await self._client.idle_websockets.take()
            self._kept = self._ws is not None
            if self._ws is None:
                await self._connect()
            else:
                await self._send(self._start)
        except (EndpointError, RequestError) as error:
            self.failure = error
            await self.__aexit__()
            raise

    async def _connect(self) -> None:
        started = time.perf_counter()
        self._kept = False
        self._ws = await open_websocket(self._client, "/stream")
        self.handshake_seconds = time.perf_counter() - started
        await self._send(self._start)

    async def __aexit__(self, *error: object) -> None:
        if self._ws is None:
            return
        if self.end is not None and self._start.keep and not self._ws.closed:
            self._client.idle_websockets.put(self._ws)
        else:
            await self._ws.close()

    async def draft(self, position: int, token_ids: Sequence[int]) -> None:
        """Sends draft tokens to follow the first `position` tokens of prompt and answer; they may arrive too late."""
        await self._send(DraftFrame(position=position, token_ids=list(token_ids)))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokensFrame:
        if self.end is not None:
            raise StopAsyncIteration
        try:
            frame = await self._receive()
            if isinstance(frame, ErrorFrame):
                raise self._error_from_frame(frame)
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
            # The reader will get what the server sent before it closed, which says more than this error.
            if not isinstance(frame, DraftFrame) and not self._kept:
                raise EndpointError(f"{self._client.base_url} broke the connection") from error

    async def _receive(self) -> ServerFrame:
        assert self._ws is not None
        with waiting("the cloud's next tokens", time.monotonic):  # the socket's pings end a silence
            message = await self._ws.receive()
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
            if self._kept:  # closed while idle, before the start frame arrived: nothing was done
                await self._connect()
                return await self._receive()
            raise EndpointError(f"{self._client.base_url} {self._loss()}")
        self._kept = False
        data: bytes = message.data.encode() if isinstance(message.data, str) else message.data
        self._count(bytes_down=len(data))
        frame: ServerFrame = self._client.decode(data, cast(Any, ServerFrame))
        return frame

    def _loss(self) -> str:
        assert self._ws is not None
        if isinstance(self._ws.exception(), aiohttp.ServerTimeoutError):
            return f"sent nothing for {self._client.config.idle_timeout:g} s"
        return f"broke the stream (close code {self._ws.close_code})"

    def _count(self, **counts: int) -> None:
        for traffic in (self._client.traffic, self._traffic):
            traffic.add(Traffic(**counts))

    def _error_from_frame(self, frame: ErrorFrame) -> EndpointError | RequestError:
        error = frame.error
        if error.type == OverloadedError.type:
            return Busy(f"{self._client.base_url}: {error.message}")
        if error.type != RequestError.type:
            return EndpointError(f"{self._client.base_url}: {error.message}")
        for kind in (VocabularyError, ContextLengthError, GrammarError):
            if error.code == kind.code:
                return kind(error.message, error.param)
        return RequestError(error.message, error.param)
