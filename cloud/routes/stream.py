"""`GET /stream`: a WebSocket on which the server sends an answer's tokens while the client sends drafts for it.

A connection carries one answer at a time, and another one after it if the client keeps it open. Each answer has two
tasks: one reads drafts, the other sends tokens. When either ends (end of the answer, a bad frame, a client that left),
the other is cancelled, and with it the generation in the engine.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from aiohttp import web

from cloud.engine.engine import CloudEngine
from cloud.routes.engine_turns import read_ahead
from cloud.routes.request_cost import has_begun
from cloud.verify.continuous import ContinuousAnswer
from cloud.verify.draft_channel import DraftChannel
from cloud.verify.round import VerifyRound
from cloud.verify.validation import check_ids
from cloud.websocket import ClientLeftError, ClientSocket, close_code, unless_draining
from common.errors import FrameworkError, RequestError
from common.fair_queue import Turn
from common.http.messages import EXCHANGE, REQUEST_ID, client_error, error_object, tenant_of, websocket
from common.http.request_context import current_priority, current_request_id
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
from common.tracing.context import current_traceparent, valid_traceparent
from common.tracing.spans import Span, SpanKind, span
from common.types import Sampling

log = logging.getLogger(__name__)

DRAFT_CHANNEL = web.AppKey("DRAFT_CHANNEL", DraftChannel)
START_SECONDS = 30.0
"""Time limit for the first start frame of a connection."""
KEEP_SECONDS = 75.0
"""Time limit for the next start frame of a connection that is kept open."""


async def _no_check(vocabulary: str) -> None:
    pass


@dataclass(frozen=True)
class StreamRoute:
    """The handler of one route; the callables are the server's rules.

    `check` raises RequestError for sampling that is refused, `check_vocabulary` VocabularyError for token ids of
    another vocabulary. `work` is entered around each generation with its number of tokens (prompt and answer), and
    whether a part of its answer is there already; it raises OverloadedError, or EngineError when the engine is lost.
    `turn` is entered around what the engine computes; while it waits the client's frames are read, and so its pings
    are answered. `record` is called with each answer that has ended, complete or not.
    """

    engine: CloudEngine
    check: Callable[[Sampling], None] = lambda _: None
    work: Callable[[int, bool], AbstractContextManager[object]] = lambda *_: nullcontext()
    turn: Turn = nullcontext
    record: Callable[[ContinuousAnswer], None] = lambda _: None
    check_vocabulary: Callable[[str], Awaitable[None]] = _no_check

    def add_to(self, app: web.Application) -> None:
        """Adds the route, and the channel for its drafts, which is open as long as `app` runs."""
        app[DRAFT_CHANNEL] = DraftChannel()
        app.cleanup_ctx.append(_own_channel)
        app.router.add_get("/stream", self.handle)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        ws = await websocket(request)
        peer = Peer(ClientSocket(ws, request[EXCHANGE]))
        try:
            start: StartFrame | None = await self._first_start(peer)
            while start is not None:
                following = await self._answer(request, peer, start)
                start = following or (await _next_start(request, peer) if start.keep else None)
            await peer.close()
        except ClientLeftError:
            pass
        except (Exception, asyncio.CancelledError) as error:
            if peer.ended and isinstance(error, asyncio.CancelledError):
                return ws  # a client that has the whole answer may close first
            failure = client_error(request, error)
            request[EXCHANGE].failed = failure.status >= 500
            await peer.fail(failure)
        return ws

    async def _answer(self, request: web.Request, peer: "Peer", start: StartFrame) -> StartFrame | None:
        """Sends one answer; returns the start of the next one if the client has already sent it."""
        peer.ended = False
        request[EXCHANGE].begin()
        await self._check(start)
        request_id = start.request_id or request[REQUEST_ID]
        current_request_id.set(request_id)
        current_traceparent.set(start.traceparent or valid_traceparent(request.headers.getall("traceparent", [])))
        round = VerifyRound(
            committed=start.token_ids,
            draft=[],
            sampling=start.sampling,
            max_tokens=start.max_tokens,
            stop_token_ids=start.stop_token_ids,
            logprobs=start.logprobs,
            use_kv_cache=start.use_kv_cache,
            cache_salt=tenant_of(request, start.tenant) or None,
            request_id=request_id,
        )
        tokens = min(len(start.token_ids) + start.max_tokens, self.engine.max_model_len)
        current_priority.set(start.priority)
        with (
            span("stream", SpanKind.SERVER) as traced,
            self.work(tokens, has_begun(len(start.token_ids), start.sampling)),
            request.app[DRAFT_CHANNEL].sender() as sender,
        ):
            answer = ContinuousAnswer(self.engine, round, sender, start.stop)
            try:
                return await self._exchange(peer, answer)
            finally:
                request[EXCHANGE].end()
                self._record(traced, answer, request_id)

    def _record(self, traced: Span, answer: ContinuousAnswer, request_id: str) -> None:
        self.record(answer)
        counts = answer.progress
        traced.set(steps=counts.steps, drafted=counts.drafted, accepted=counts.accepted, tokens=answer.drawn)
        traced.set(request_id=request_id)
        log.info("stream of %d tokens, request %s", answer.drawn, request_id)

    async def _first_start(self, peer: "Peer") -> StartFrame:
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
        if (spec := start.sampling.grammar) is not None:
            await self.engine.check_grammar(spec)
        await self.check_vocabulary(start.vocabulary)
        check_ids(start.token_ids, self.engine.vocab_size, "token_ids")
        check_ids(start.stop_token_ids, self.engine.vocab_size, "stop_token_ids")

    async def _exchange(self, peer: "Peer", answer: ContinuousAnswer) -> StartFrame | None:
        reading = asyncio.create_task(self._read(peer, answer))
        sending = asyncio.create_task(_send(peer, self._frames(answer)))
        try:
            await asyncio.wait((reading, sending), return_when=asyncio.FIRST_COMPLETED)
            following = reading.result() if reading.done() else None
            await sending
            return following
        finally:
            for task in (reading, sending):
                task.cancel()
            await asyncio.gather(reading, sending, return_exceptions=True)

    async def _frames(self, answer: ContinuousAnswer) -> AsyncGenerator[ServerFrame, None]:
        async with self.turn(), aclosing(answer.frames()) as frames:
            async for frame in frames:
                yield frame

    async def _read(self, peer: "Peer", answer: ContinuousAnswer) -> StartFrame:
        """Passes drafts on; returns the next start, which may follow only after the answer's end."""
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
            await asyncio.sleep(0)  # reading frames that have already arrived would never yield to other tasks


class Peer:
    """One connection's frames; it answers in the form (JSON as text, or MessagePack) in which it was last addressed."""

    def __init__(self, socket: ClientSocket) -> None:
        self._socket = socket
        self._content_type = codec.JSON
        self.ended = False
        """Whether the answer's last frame has been sent, or is being sent."""

    async def receive(self) -> ClientFrame:
        """Raises RequestError for a frame that cannot be read, ClientLeftError when the connection is closed."""
        data, text = await self._socket.receive()
        self._content_type = codec.JSON if text else codec.MSGPACK
        frame: ClientFrame = codec.decode(data, cast(Any, ClientFrame), self._content_type)
        return frame

    async def send(self, frame: ServerFrame) -> None:
        """Raises ClientLeftError when the client has left, or reads too slowly."""
        body = codec.encode(frame, self._content_type)
        self.ended = isinstance(frame, EndFrame)  # set before the client can react to it
        await self._socket.send(body, text=self._content_type == codec.JSON)

    async def fail(self, error: FrameworkError) -> None:
        """Sends the client an error frame, and closes."""
        frame = ErrorFrame(error=msgspec.convert(error_object(error)["error"], ErrorDetail))
        with suppress(ClientLeftError):
            await self.send(frame)
            await self._socket.close(close_code(error), error.message)

    async def close(self) -> None:
        await self._socket.close()


async def _next_start(request: web.Request, peer: Peer) -> StartFrame | None:
    """The next start of a connection that is kept open; None when the time is over or the server stops.

    Drafts that still arrive are for the last answer, and are ignored.
    """

    async def start() -> StartFrame:
        while not isinstance(frame := await peer.receive(), StartFrame):
            pass
        return frame

    return await unless_draining(request, start(), KEEP_SECONDS)


async def _send(peer: Peer, frames: AsyncGenerator[ServerFrame, None]) -> None:
    """Sends the frames; how slowly a client reads them holds the engine's place no longer than computing them does."""
    async with aclosing(read_ahead(frames)) as drawn:
        async for frame in drawn:
            await peer.send(frame)


async def _own_channel(app: web.Application) -> AsyncIterator[None]:
    async with app[DRAFT_CHANNEL]:
        yield
