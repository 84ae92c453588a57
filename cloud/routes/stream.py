"""`GET /stream`: a WebSocket over which an answer's tokens come down while drafts go up. Knows no vLLM.

A connection has one answer at a time, and another after it if its client keeps it. Each owns two tasks, one that reads
drafts and one that sends tokens; when either ends (the answer, a bad frame, a client that left), the other is
cancelled, and with it the generation in the engine.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from cloud.engine.engine import CloudEngine
from cloud.verify.continuous import ContinuousAnswer
from cloud.verify.draft_channel import DraftChannel
from cloud.verify.round import VerifyRound
from cloud.verify.validation import check_ids
from common.errors import EngineError, FrameworkError, OverloadedError, RequestError, StoppingError
from common.http.in_flight import IN_FLIGHT
from common.http.messages import EXCHANGE, REQUEST_ID, TENANT, Exchange, client_error, error_object, websocket
from common.http.request_context import current_request_id
from common.protocol import codec
from common.protocol.stream_frames import (
    ClientFrame,
    DraftFrame,
    EndFrame,
    ErrorDetail,
    ErrorFrame,
    ServerFrame,
    StartFrame,
)
from common.types import Sampling

log = logging.getLogger(__name__)

DRAFT_CHANNEL = web.AppKey("DRAFT_CHANNEL", DraftChannel)
START_SECONDS = 30.0
"""How long a connection may stay without its start frame."""
KEEP_SECONDS = 75.0
"""How long a kept one may stay without its next."""
SEND_SECONDS = 10.0
"""How long a client may leave what was sent to it unread before it is cut off; the buffer before that is 64 KiB."""


class LeftError(ConnectionError):
    """The client is gone: there is nobody to tell."""


async def _no_check(vocabulary: str) -> None:
    pass


@dataclass(frozen=True)
class StreamRoute:
    """The handler of one route; the callables are the server's own rules, which this file does not know.

    `check` raises RequestError for sampling that is refused, `check_vocabulary` VocabularyError for ids that mean
    something else here. `work` is entered around each generation with its tokens
    (prompt and answer); it raises OverloadedError, or EngineError when the engine is lost. `record` is told of each
    answer that has ended, complete or not.
    """

    engine: CloudEngine
    check: Callable[[Sampling], None] = lambda _: None
    work: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext()
    record: Callable[[ContinuousAnswer], None] = lambda _: None
    check_vocabulary: Callable[[str], Awaitable[None]] = _no_check

    def add_to(self, app: web.Application) -> None:
        """Adds the route, and the channel for its drafts, which lives as long as `app`."""
        app[DRAFT_CHANNEL] = DraftChannel()
        app.cleanup_ctx.append(_own_channel)
        app.router.add_get("/stream", self.handle)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        ws = await websocket(request)
        peer = Peer(ws, request[EXCHANGE])
        try:
            start: StartFrame | None = await self._started(peer)
            while start is not None:
                following = await self._answer(request, peer, start)
                start = following or (await _next(request, peer) if start.keep else None)
            await peer.close()
        except LeftError:
            pass
        except (Exception, asyncio.CancelledError) as error:
            if peer.ended and isinstance(error, asyncio.CancelledError):
                return ws  # a client that has all may be the first to close
            failure = client_error(request, error)
            request[EXCHANGE].failed = failure.status >= 500
            await peer.fail(failure)
        return ws

    async def _answer(self, request: web.Request, peer: "Peer", start: StartFrame) -> StartFrame | None:
        """Returns the start of the next answer if that was there already."""
        peer.ended = False
        await self._check(start)
        request_id = start.request_id or request[REQUEST_ID]
        current_request_id.set(request_id)
        asked = VerifyRound(
            committed=start.token_ids,
            draft=[],
            sampling=start.sampling,
            max_tokens=start.max_tokens,
            stop_token_ids=start.stop_token_ids,
            logprobs=start.logprobs,
            use_kv_cache=start.use_kv_cache,
            cache_salt=request[TENANT] or None,
            request_id=request_id,
        )
        tokens = min(len(start.token_ids) + start.max_tokens, self.engine.max_model_len)
        with self.work(tokens), request.app[DRAFT_CHANNEL].sender() as sender:
            answer = ContinuousAnswer(self.engine, asked, sender, start.stop)
            try:
                return await self._exchange(peer, answer)
            finally:
                self.record(answer)
                log.info("stream of %d tokens, request %s", answer.drawn, request_id)

    async def _started(self, peer: "Peer") -> StartFrame:
        try:
            async with asyncio.timeout(START_SECONDS):
                start = await peer.receive()
        except TimeoutError as error:
            raise RequestError(f"no start frame came within {START_SECONDS:g} s") from error
        if not isinstance(start, StartFrame):
            raise RequestError("the first frame must be a start", param="type")
        return start

    async def _check(self, start: StartFrame) -> None:
        self.check(start.sampling)
        await self.check_vocabulary(start.vocabulary)
        check_ids(start.token_ids, self.engine.vocab_size, "token_ids")
        check_ids(start.stop_token_ids, self.engine.vocab_size, "stop_token_ids")

    async def _exchange(self, peer: "Peer", answer: ContinuousAnswer) -> StartFrame | None:
        reading, sending = asyncio.create_task(self._read(peer, answer)), asyncio.create_task(_send(peer, answer))
        try:
            await asyncio.wait((reading, sending), return_when=asyncio.FIRST_COMPLETED)
            following = reading.result() if reading.done() else None
            await sending
            return following
        finally:
            for task in (reading, sending):
                task.cancel()
            await asyncio.gather(reading, sending, return_exceptions=True)

    async def _read(self, peer: "Peer", answer: ContinuousAnswer) -> StartFrame:
        """Takes drafts until a client that has the end says what it wants next."""
        while True:
            frame = await peer.receive()
            if isinstance(frame, StartFrame) and peer.ended:
                return frame
            if not isinstance(frame, DraftFrame):
                raise RequestError("an answer has one start", param="type")
            if frame.position >= self.engine.max_model_len:
                raise RequestError("position is past the end of the context", param="position")
            check_ids(frame.token_ids, self.engine.vocab_size, "token_ids")
            answer.draft(frame.position, frame.token_ids)
            await asyncio.sleep(0)  # frames that are here already are read without a pause: the others' turn


class Peer:
    """One connection, in frames; it answers in the form of the first frame that it gets."""

    def __init__(self, ws: web.WebSocketResponse, exchange: Exchange) -> None:
        self._ws = ws
        self._exchange = exchange
        self._content_type = codec.JSON
        self.ended = False
        """Whether the last frame of the answer is on its way."""

    async def receive(self) -> ClientFrame:
        """Raises RequestError for a frame that cannot be read, LeftError when there is no more."""
        message = await self._ws.receive()
        match message.type:
            case WSMsgType.BINARY:
                self._content_type = codec.MSGPACK
            case WSMsgType.TEXT:
                self._content_type = codec.JSON
            case _:
                raise LeftError
        data = message.data.encode() if isinstance(message.data, str) else message.data
        self._exchange.bytes_in += len(data)
        frame: ClientFrame = codec.decode(data, cast(Any, ClientFrame), self._content_type)
        return frame

    async def send(self, frame: ServerFrame) -> None:
        """Raises LeftError when the client is gone, or reads too slowly."""
        body = codec.encode(frame, self._content_type)
        self.ended = isinstance(frame, EndFrame)  # before it can be answered
        try:
            async with asyncio.timeout(SEND_SECONDS):
                if self._content_type == codec.MSGPACK:
                    await self._ws.send_bytes(body)
                else:
                    await self._ws.send_str(body.decode())
        except (TimeoutError, ConnectionError) as error:
            raise LeftError from error
        self._exchange.record_sent(len(body))

    async def fail(self, error: FrameworkError) -> None:
        """Tells the client what went wrong, and closes."""
        frame = ErrorFrame(error=msgspec.convert(error_object(error)["error"], ErrorDetail))
        try:
            await self.send(frame)
        except LeftError:
            return
        await self._ws.close(code=_close_code(error), message=error.message.encode()[:100])

    async def close(self) -> None:
        await self._ws.close()


async def _next(request: web.Request, peer: Peer) -> StartFrame | None:
    """What a kept connection is asked next, None when it is time to close it; drafts for the last answer are late."""

    async def start() -> StartFrame:
        while not isinstance(frame := await peer.receive(), StartFrame):
            pass
        return frame

    waits = asyncio.create_task(start()), asyncio.create_task(request.app[IN_FLIGHT].draining.wait())
    try:
        await asyncio.wait(waits, timeout=KEEP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return waits[0].result() if waits[0].done() else None
    finally:
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _send(peer: Peer, answer: ContinuousAnswer) -> None:
    async with aclosing(answer.frames()) as frames:
        async for frame in frames:
            await peer.send(frame)


async def _own_channel(app: web.Application) -> AsyncIterator[None]:
    async with app[DRAFT_CHANNEL]:
        yield


def _close_code(error: FrameworkError) -> WSCloseCode:
    match error:
        case RequestError():
            return WSCloseCode.POLICY_VIOLATION
        case StoppingError():
            return WSCloseCode.GOING_AWAY
        case OverloadedError() | EngineError():
            return WSCloseCode.TRY_AGAIN_LATER
        case _:
            return WSCloseCode.INTERNAL_ERROR
