"""Relays `GET /stream`: each answer goes to the replica that suits it, and goes on on another one if that is lost.

A client's connection has two tasks. One reads its frames; the other has the answers, one after another. The replicas'
connections belong to the client's, because keys are shown once for each.
"""

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress
from typing import NoReturn

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

from cloud.replicas.fleet import Fleet
from cloud.replicas.relay import MAX_LOSSES, ReplicaLost, ReplicaUnreached, headers_on, too_many_losses
from cloud.replicas.replica import Replica
from cloud.replicas.request_key import key_of_start
from cloud.replicas.resumable import ResumableAnswer, client_frame, is_for_another, server_frame
from cloud.websocket import ClientLeftError, ClientSocket, ReceivedFrame, close_code, unless_draining
from common.errors import EngineError, FrameworkError
from common.http.first_completed import first_completed
from common.http.messages import EXCHANGE, TENANT, client_error, error_object, websocket
from common.http.websocket_pool import WebSocketPool
from common.protocol import codec
from common.protocol.stream_frames import DraftFrame, EndFrame, ErrorDetail, ErrorFrame, ServerFrame, StartFrame

log = logging.getLogger(__name__)

KEEP_SECONDS = 75.0
"""Time limit for the next start of a connection, as a replica has it."""
HEARTBEAT_SECONDS = 8.0
"""Interval of pings to a replica, which has half of it to answer: a machine that is gone breaks no connection."""


async def relay_stream(request: web.Request, fleet: Fleet) -> web.WebSocketResponse:
    """The handler of GET /stream."""
    ws = await websocket(request)
    relay = StreamRelay(request, ClientSocket(ws, request[EXCHANGE]), fleet)
    try:
        await first_completed(relay.read_client(), relay.answer_all())
        await relay.client.close()
    except ClientLeftError:
        pass
    except (Exception, asyncio.CancelledError) as error:
        if not relay.answering and isinstance(error, asyncio.CancelledError):
            return ws
        failure = client_error(request, error)
        request[EXCHANGE].failed = failure.status >= 500
        await relay.fail(failure)
    finally:
        await relay.close()
    return ws


async def open_upstream(
    request: web.Request, replica: Replica, message_limit: int = 0
) -> aiohttp.ClientWebSocketResponse:
    """A WebSocket to the replica, at the path and with the headers of the request; raises WSServerHandshakeError where
    the replica refuses it, ReplicaUnreached where it is lost."""
    try:
        return await replica.http_session().ws_connect(
            replica.url + request.path,
            headers=headers_on(request),
            protocols=(codec.SUBPROTOCOL,),
            heartbeat=HEARTBEAT_SECONDS,
            max_msg_size=message_limit,
            timeout=aiohttp.ClientWSTimeout(ws_close=0.5),
        )
    except aiohttp.WSServerHandshakeError:
        raise
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ReplicaUnreached(f"replica {replica.name} cannot be reached ({type(error).__name__})") from error


async def send_upstream(upstream: aiohttp.ClientWebSocketResponse, frame: ReceivedFrame) -> None:
    """Sends a client's frame on, in the form in which it came; a lost replica is noticed where it is read."""
    with suppress(ConnectionError, aiohttp.ClientError):
        if frame.text:
            await upstream.send_str(frame.data.decode(errors="replace"))
        else:
            await upstream.send_bytes(frame.data)


class ReplicaRefused(ReplicaLost):
    """A replica cannot go on, and says so in `frame`."""

    def __init__(self, message: str, frame: ErrorFrame) -> None:
        super().__init__(message)
        self.frame = frame


class StreamRelay:
    """One client's connection. Owns the connections to replicas that were opened for it."""

    def __init__(self, request: web.Request, client: ClientSocket, fleet: Fleet) -> None:
        self.client = client
        self.answering = False
        self._request = request
        self._fleet = fleet
        self._starts: asyncio.Queue[ReceivedFrame] = asyncio.Queue(1)
        self._upstream: aiohttp.ClientWebSocketResponse | None = None
        """Where drafts go: the connection of the answer that runs."""
        self._idle: defaultdict[str, WebSocketPool] = defaultdict(lambda: WebSocketPool(1))
        """Of earlier answers, by the replica's URL."""
        self._text = False
        self._reused = False
        """Whether that connection was kept from an earlier answer and has said nothing since: it may be closing."""

    async def close(self) -> None:
        for pool in self._idle.values():
            await pool.close()
        if self._upstream is not None:
            await self._upstream.close()

    async def fail(self, error: FrameworkError) -> None:
        """Tells the client, and closes its connection."""
        detail = error_object(error)["error"]
        frame = ErrorFrame(error=ErrorDetail(**detail))  # type: ignore[arg-type]
        with suppress(ClientLeftError):
            await self._send(frame)
            await self.client.close(close_code(error), error.message)

    async def read_client(self) -> None:
        """Passes drafts on to the running answer's replica, and starts to `answer_all`, until the client leaves."""
        while True:
            frame = await self.client.receive()
            read, upstream = client_frame(*frame), self._upstream
            if upstream is not None and not isinstance(read, StartFrame):
                await send_upstream(upstream, frame)  # what is no draft either, it refuses
            elif not isinstance(read, DraftFrame):  # a draft that comes too late is dropped
                await self._starts.put(frame)

    async def answer_all(self) -> None:
        """The answers of this connection; returns when there is no further one in time, or the server stops."""
        while (frame := await self._next_start()) is not None:
            self._text = frame.text
            start = client_frame(*frame)
            self._request[EXCHANGE].begin()
            self.answering = True
            await self._answer(frame, start if isinstance(start, StartFrame) else None)
            self.answering = False
            self._request[EXCHANGE].end()
            if not isinstance(start, StartFrame) or not start.keep:
                return

    async def _next_start(self) -> ReceivedFrame | None:
        return await unless_draining(self._request, self._starts.get(), KEEP_SECONDS)

    async def _answer(self, frame: ReceivedFrame, start: StartFrame | None) -> None:
        """One answer, on as many replicas as it takes. Without a `start` the frame is wrong: a replica says how."""
        answer = ResumableAnswer(start or StartFrame(token_ids=[0], max_tokens=1))
        tried: set[str] = set()
        refusal: ErrorFrame | None = None
        while not answer.ended:
            try:
                if answer.losses == MAX_LOSSES:
                    raise too_many_losses()
                replica = self._fleet.pick(key_of_start(answer.rest, self._request[TENANT]), tried)
            except EngineError:
                if refusal is None:
                    raise
                await self._refuse(refusal, WSCloseCode.TRY_AGAIN_LATER)
            try:
                with self._fleet.using(replica):
                    await self._part(replica, frame if start is None else None, answer)
            except ReplicaLost as error:
                if not answer.may_go_on:
                    raise EngineError(error.message) from error
                refusal = error.frame if isinstance(error, ReplicaRefused) else None
                log.info("%s; its stream goes on, request %s", error.message, answer.rest.request_id or "without id")
                if not self._reused:
                    tried.add(replica.url)
                if end := answer.end:
                    await self._send(end)
                    return
                answer.lose_replica(_may_be_its_fault(error))

    async def _part(self, replica: Replica, unread: ReceivedFrame | None, answer: ResumableAnswer) -> None:
        """What one replica gives of the answer; raises ReplicaLost where it does not end it."""
        upstream = await self._idle[replica.url].take()
        self._reused = upstream is not None
        self._upstream = upstream = upstream or await self._opened(replica)
        try:
            rest = codec.encode(answer.rest, codec.JSON if self._text else codec.MSGPACK)
            await send_upstream(upstream, unread or ReceivedFrame(rest, self._text))
            await self._pass_back(replica, upstream, answer)
            self._upstream = None
            self._idle[replica.url].put(upstream)
        finally:
            if self._upstream is not None:
                self._upstream = None
                await upstream.close()

    async def _opened(self, replica: Replica) -> aiohttp.ClientWebSocketResponse:
        try:
            return await open_upstream(self._request, replica)
        except aiohttp.WSServerHandshakeError as error:  # it drains
            raise ReplicaUnreached(f"replica {replica.name} answered {error.status}") from error

    async def _pass_back(
        self, replica: Replica, upstream: aiohttp.ClientWebSocketResponse, answer: ResumableAnswer
    ) -> None:
        """Frames until the answer's last one; after an error frame also the end of the connection."""
        while not answer.ended:
            message = await upstream.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                self._reused &= upstream.close_code != WSCloseCode.ABNORMAL_CLOSURE
                lost = ReplicaUnreached if self._reused else ReplicaLost
                raise lost(f"replica {replica.name} is lost (close code {upstream.close_code})")
            self._reused = False
            text = message.type is WSMsgType.TEXT
            data = message.data.encode() if text else message.data
            frame = server_frame(data, text)
            if frame is None:
                raise ReplicaLost(f"replica {replica.name} sends what cannot be read")
            if isinstance(frame, ErrorFrame):
                if is_for_another(frame):
                    raise ReplicaRefused(f"replica {replica.name} cannot go on: {frame.error.message}", frame)
                await self._refuse(frame, WSCloseCode.POLICY_VIOLATION)
            passed = answer.record(frame)
            if passed is frame:
                await self.client.send(data, text)
            else:
                await self._send(passed)

    async def _refuse(self, frame: ErrorFrame, code: WSCloseCode) -> NoReturn:
        """Passes on why no replica answers, and closes the client's connection as a replica does."""
        await self._send(frame)
        await self.client.close(code, frame.error.message)
        raise ClientLeftError

    async def _send(self, frame: ServerFrame | EndFrame) -> None:
        await self.client.send(codec.encode(frame, codec.JSON if self._text else codec.MSGPACK), self._text)


def _may_be_its_fault(error: ReplicaLost) -> bool:
    """Whether the answer itself may have ended the replica, or its engine."""
    if isinstance(error, ReplicaRefused):
        return error.frame.error.type == "server_error"
    return not isinstance(error, ReplicaUnreached)
