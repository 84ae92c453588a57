"""One connection to a cloud's `GET /split`: frames go out in order, each answer to who asked. Sends nothing twice."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol, cast

import aiohttp
from aiohttp import WSMsgType

from common.errors import EndpointError, FrameworkError, RequestError
from common.http.client import HTTPClient
from common.http.first_completed import first
from common.http.retry import Broken, Unreachable
from common.http.websocket import open_websocket
from common.protocol import codec
from common.protocol.split_frames import (
    AskFrame,
    CloseFrame,
    CloudFrame,
    EdgeFrame,
    FaultFrame,
    StatesFrame,
    TokenFrame,
)

PAUSE_SECONDS = 0.5
"""After a connection that could not be made; what would wait for another one in vain is told at once meanwhile."""
GOODBYE_SECONDS = 0.2
"""How long closing waits for what is still to be written."""


class Session(Protocol):
    """Whose frames these are."""

    id: str
    left: bool
    written: int
    bytes_up: int
    bytes_down: int
    failure: FaultFrame | None


class SplitLink:
    """Owns a socket, and two tasks that write and read it; once it has a `failure` it is over. Made in an event loop.

    Lost is a cloud that does not take a frame, or answer a ping, within `idle_timeout`.
    """

    def __init__(self, client: HTTPClient) -> None:
        self.failure: FrameworkError | None = None
        self._client = client
        self._out: asyncio.Queue[tuple[Session, EdgeFrame] | asyncio.Future[None]] = asyncio.Queue()
        self._sessions: dict[str, Session] = {}
        self._asked: dict[tuple[str, int], asyncio.Future[TokenFrame | FaultFrame]] = {}
        self._flushes: set[asyncio.Future[None]] = set()
        self._failed_at = 0.0
        self._task = asyncio.create_task(self._run())

    def may_be_replaced(self) -> bool:
        """Whether it is over; raises what it failed with while that was a moment ago and would only repeat itself."""
        lasting = isinstance(self.failure, Unreachable | RequestError)
        if self.failure is not None and lasting and time.monotonic() - self._failed_at < PAUSE_SECONDS:
            raise self.failure
        return self.failure is not None

    def put(self, session: Session, frame: EdgeFrame) -> None:
        """Hands a frame to the writer; one that can no longer be written is lost."""
        self._sessions[session.id] = session
        self._out.put_nowait((session, frame))

    async def ask(self, session: Session, ask: AskFrame) -> TokenFrame | FaultFrame:
        """What the cloud says to it; raises EndpointError or RequestError when the connection fails first."""
        self._check()
        answer: asyncio.Future[TokenFrame | FaultFrame] = asyncio.get_running_loop().create_future()
        self._asked[session.id, ask.id] = answer
        try:
            self.put(session, ask)
            return await answer
        finally:
            del self._asked[session.id, ask.id]

    async def flushed(self) -> None:
        """Returns when all frames put so far are written; raises as `ask`."""
        self._check()
        flush: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.add(flush)
        try:
            self._out.put_nowait(flush)
            await flush
        finally:
            self._flushes.discard(flush)

    async def close(self) -> None:
        """Ends it, with what was put written if that takes no time."""
        if self.failure is None:
            with suppress(TimeoutError, EndpointError, RequestError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self.flushed()
        self._task.cancel()
        await asyncio.wait([self._task])
        self._fail(EndpointError("the connection is closed"))

    async def _run(self) -> None:
        try:
            ws = await open_websocket(self._client, "/split")
        except RequestError as error:
            self._fail(RequestError(f"{error.message}; has it a tail of this model (cloud.split.manifest)?"))
            return
        except EndpointError as error:
            self._fail(error)
            return
        try:
            await first(self._write(ws), self._read(ws))
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
            if session.left and not isinstance(frame, CloseFrame):
                continue  # nobody wants it any more
            body = codec.encode(frame, codec.MSGPACK)
            try:
                async with asyncio.timeout(self._client.config.idle_timeout):
                    await ws.send_bytes(body)
            except (ConnectionError, TimeoutError) as error:
                raise self._broken("takes nothing") from error
            self._client.traffic.bytes_up += len(body)
            session.bytes_up += len(body)
            if isinstance(frame, StatesFrame):
                session.written = frame.start + frame.count
            if isinstance(frame, CloseFrame):
                self._sessions.pop(session.id, None)

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            message = await ws.receive()
            if message.type is not WSMsgType.BINARY:
                raise self._broken(f"broke the connection (close code {ws.close_code})")
            self._client.traffic.bytes_down += len(message.data)
            try:
                self._take(codec.decode(message.data, cast(Any, CloudFrame), codec.MSGPACK), len(message.data))
            except RequestError as error:
                raise self._broken(f"answers nonsense ({error.message})") from error

    def _take(self, frame: CloudFrame, size: int) -> None:
        session = self._sessions.get(frame.session or "")
        if session is None:
            if isinstance(frame, FaultFrame) and frame.session is None:
                raise self._broken(f"says: {frame.error.message}")
            return  # of a session that was left
        session.bytes_down += size
        if frame.id is not None:
            _settle(self._asked.get((session.id, frame.id)), frame)
        elif isinstance(frame, FaultFrame):
            asked = [answer for (id, _), answer in self._asked.items() if id == session.id]
            for answer in asked:
                _settle(answer, frame)
            session.failure = None if asked else frame

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _broken(self, what: str) -> Broken:
        return Broken(f"{self._client.base_url} {what}")

    def _fail(self, error: FrameworkError) -> None:
        if self.failure is None:
            self.failure, self._failed_at = error, time.monotonic()
        waiting: Iterable[asyncio.Future[Any]] = (*self._asked.values(), *self._flushes)
        for future in waiting:
            if not future.done():
                future.set_exception(self.failure)


def _settle(answer: asyncio.Future[TokenFrame | FaultFrame] | None, frame: TokenFrame | FaultFrame) -> None:
    if answer is not None and not answer.done():
        answer.set_result(frame)
