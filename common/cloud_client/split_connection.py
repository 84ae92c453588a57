"""Sends and receives the frames of many split sessions over one WebSocket to a cloud's `GET /split`."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol, cast

import aiohttp
from aiohttp import WSMsgType

from common.errors import EndpointError, FrameworkError, RequestError
from common.http.client import HTTPClient
from common.http.first_completed import first_completed
from common.http.retry import ConnectionBroken, Unreachable
from common.http.websocket import open_websocket
from common.protocol import codec
from common.protocol.split_frames import (
    AskFrame,
    CloseFrame,
    CloudFrame,
    EdgeFrame,
    FaultFrame,
    OpenFrame,
    StatesFrame,
    TokenFrame,
)

PAUSE_SECONDS = 0.5
"""Pause after a connection that could not be made, during which callers get its error at once."""
FLUSH_SECONDS = 0.2
"""How long closing waits for frames that are still to be written."""


class Session(Protocol):
    """The part of a SplitSession that the connection reads and updates."""

    id: str
    closed: bool
    written: int
    bytes_up: int
    bytes_down: int
    fault: FaultFrame | None


class SplitLink:
    """Owns a socket and the tasks that write and read it; make it in an event loop. It never sends a frame twice.

    It ends with a `failure`, for example when the cloud takes no frame or answers no ping within `idle_timeout`.
    """

    def __init__(self, client: HTTPClient) -> None:
        self.failure: FrameworkError | None = None
        self._client = client
        self._out: asyncio.Queue[tuple[Session, EdgeFrame] | asyncio.Future[None]] = asyncio.Queue()
        self._sessions: dict[str, Session] = {}
        self._pending: dict[tuple[str, int], asyncio.Future[TokenFrame | FaultFrame]] = {}
        self._flushes: set[asyncio.Future[None]] = set()
        self._failed_at = 0.0
        self._task = asyncio.create_task(self._run())

    def may_be_replaced(self) -> bool:
        """Whether the connection has ended; raises its failure within PAUSE_SECONDS of one that would only repeat."""
        lasting = isinstance(self.failure, Unreachable | RequestError)
        if self.failure is not None and lasting and time.monotonic() - self._failed_at < PAUSE_SECONDS:
            raise self.failure
        return self.failure is not None

    def put(self, session: Session, frame: EdgeFrame) -> None:
        """Queues a frame for the writer; after a failure it is dropped."""
        self._sessions[session.id] = session
        self._out.put_nowait((session, frame))

    async def ask(self, session: Session, question: AskFrame) -> TokenFrame | FaultFrame:
        """The cloud's reply to `question`; raises EndpointError or RequestError if the connection fails first."""
        self._raise_failure()
        reply: asyncio.Future[TokenFrame | FaultFrame] = asyncio.get_running_loop().create_future()
        self._pending[session.id, question.id] = reply
        try:
            self.put(session, question)
            return await reply
        finally:
            del self._pending[session.id, question.id]

    async def flush(self) -> None:
        """Waits until all queued frames are written; raises as `ask` does."""
        self._raise_failure()
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.add(written)
        try:
            self._out.put_nowait(written)
            await written
        finally:
            self._flushes.discard(written)

    async def close(self) -> None:
        """Closes the connection; frames still queued are written within FLUSH_SECONDS or dropped."""
        if self.failure is None:
            with suppress(TimeoutError, EndpointError, RequestError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self.flush()
        self._task.cancel()
        await asyncio.wait([self._task])
        self._fail(EndpointError("the connection is closed"))

    async def _run(self) -> None:
        try:
            ws = await open_websocket(self._client, "/split")
        except RequestError as error:
            self._fail(RequestError(f"{error.message}; does it serve a tail of this model (cloud.split.manifest)?"))
            return
        except EndpointError as error:
            self._fail(error)
            return
        try:
            await first_completed(self._write(ws), self._read(ws))
        except EndpointError as error:
            self._fail(error)
        finally:
            await ws.close()

    async def _write(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            item = await self._out.get()
            if isinstance(item, asyncio.Future):
                if not item.done():
                    item.set_result(None)
                continue
            session, frame = item
            if session.closed and not isinstance(frame, CloseFrame):
                continue  # nobody needs it any more
            body = codec.encode(frame, codec.MSGPACK)
            try:
                async with asyncio.timeout(self._client.config.idle_timeout):
                    await ws.send_bytes(body)
            except (ConnectionError, TimeoutError) as error:
                raise self._connection_error("takes nothing") from error
            self._client.traffic.bytes_up += len(body)
            session.bytes_up += len(body)
            if isinstance(frame, StatesFrame):
                session.written = frame.start + frame.count
            if isinstance(frame, CloseFrame):
                self._sessions.pop(session.id, None)
            if isinstance(frame, OpenFrame) and frame.parent is not None:
                self._sessions.pop(frame.parent, None)

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            message = await ws.receive()
            if message.type is not WSMsgType.BINARY:
                raise self._connection_error(f"broke the connection (close code {ws.close_code})")
            self._client.traffic.bytes_down += len(message.data)
            try:
                self._dispatch(codec.decode(message.data, cast(Any, CloudFrame), codec.MSGPACK), len(message.data))
            except RequestError as error:
                raise self._connection_error(f"answers nonsense ({error.message})") from error

    def _dispatch(self, frame: CloudFrame, size: int) -> None:
        session = self._sessions.get(frame.session or "")
        if session is None:
            if isinstance(frame, FaultFrame) and frame.session is None:
                raise self._connection_error(f"says: {frame.error.message}")
            return  # of a session that is closed
        session.bytes_down += size
        if frame.id is not None:
            _set_reply(self._pending.get((session.id, frame.id)), frame)
        elif isinstance(frame, FaultFrame):
            pending = [reply for (id, _), reply in self._pending.items() if id == session.id]
            for reply in pending:
                _set_reply(reply, frame)
            session.fault = None if pending else frame

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _connection_error(self, what: str) -> ConnectionBroken:
        return ConnectionBroken(f"{self._client.base_url} {what}")

    def _fail(self, error: FrameworkError) -> None:
        if self.failure is None:
            self.failure, self._failed_at = error, time.monotonic()
        waiting: Iterable[asyncio.Future[Any]] = (*self._pending.values(), *self._flushes)
        for future in waiting:
            if not future.done():
                future.set_exception(self.failure)


def _set_reply(reply: asyncio.Future[TokenFrame | FaultFrame] | None, frame: TokenFrame | FaultFrame) -> None:
    if reply is not None and not reply.done():
        reply.set_result(frame)
