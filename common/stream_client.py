"""The client's side of `GET /stream`: one answer whose tokens come while drafts go. Knows no engine and no policy."""

import time
from collections.abc import Sequence
from typing import Any, Self, cast

import aiohttp
from aiohttp import WSMsgType

from common import wire
from common.connection import HTTPClient, Traffic
from common.errors import ContextLengthError, EndpointError, RequestError
from common.frames import DraftFrame, EndFrame, ErrorFrame, ServerFrame, Start, TokensFrame
from common.types import GREEDY, Sampling

HEARTBEAT_SECONDS = 10.0
CLOSE_SECONDS = 1.0


class CloudStream:
    """`async with` it, iterate over its frames of tokens, and send `draft`s meanwhile; leaving it ends the answer.

    Everything raises EndpointError when the server cannot be used, RequestError (or a child) when it refuses.
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
        traffic: Traffic | None = None,
    ) -> None:
        self._client = client
        self._traffic = traffic or Traffic()
        """What this one stream costs; the client's own traffic counts it too."""
        self._start = Start(
            token_ids=list(token_ids),
            max_tokens=max_tokens,
            sampling=sampling,
            stop=list(stop),
            stop_token_ids=list(stop_token_ids),
            logprobs=logprobs,
            use_kv_cache=use_kv_cache,
        )
        self.end: EndFrame | None = None
        """What came of it, once all tokens are here."""
        self.opened_in = 0.0
        """Seconds for the handshake: one round trip, or two where a connection had to be made."""
        self._ws: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> Self:
        client = self._client
        client.traffic.calls += 1
        self._traffic.calls += 1
        began = time.perf_counter()
        try:
            self._ws = await client.session().ws_connect(
                f"{client.base_url}/stream",
                headers=client.headers(),
                heartbeat=HEARTBEAT_SECONDS,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
        except aiohttp.WSServerHandshakeError as error:
            kind = RequestError if 400 <= error.status < 500 and error.status not in (401, 408, 429) else EndpointError
            raise kind(f"{client.base_url} refused a stream with {error.status}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EndpointError(f"cannot reach {client.base_url} ({type(error).__name__})") from error
        self.opened_in = time.perf_counter() - began
        await self._send(self._start)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._ws is not None:
            await self._ws.close()

    async def draft(self, position: int, token_ids: Sequence[int]) -> None:
        """Offers what may follow the first `position` tokens of prompt and answer; it may come too late."""
        await self._send(DraftFrame(position=position, token_ids=list(token_ids)))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokensFrame:
        if self.end is not None:
            raise StopAsyncIteration
        match await self._receive():
            case TokensFrame() as tokens:
                return tokens
            case EndFrame() as end:
                self.end = end
                raise StopAsyncIteration
            case ErrorFrame() as failure:
                raise self._failure(failure)

    async def _send(self, frame: Start | DraftFrame) -> None:
        assert self._ws is not None
        body = wire.encode(frame, self._client.content_type)
        self._client.traffic.bytes_up += len(body)
        self._traffic.bytes_up += len(body)
        try:
            if self._client.content_type == wire.MSGPACK:
                await self._ws.send_bytes(body)
            else:
                await self._ws.send_str(body.decode())
        except ConnectionError as error:
            # What the server said before it closed is still to be read, and says more than this would.
            if not isinstance(frame, DraftFrame):
                raise EndpointError(f"{self._client.base_url} broke the connection") from error

    async def _receive(self) -> ServerFrame:
        assert self._ws is not None
        message = await self._ws.receive()
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
            raise EndpointError(f"{self._client.base_url} broke the stream (close code {self._ws.close_code})")
        data: bytes = message.data.encode() if isinstance(message.data, str) else message.data
        self._client.traffic.bytes_down += len(data)
        self._traffic.bytes_down += len(data)
        frame: ServerFrame = wire.decode(data, cast(Any, ServerFrame), self._client.content_type)
        return frame

    def _failure(self, failure: ErrorFrame) -> EndpointError | RequestError:
        error = failure.error
        if error.type != RequestError.type:
            return EndpointError(f"{self._client.base_url}: {error.message}")
        kind = ContextLengthError if error.code == ContextLengthError.code else RequestError
        return kind(error.message, error.param)
