"""Handles one edge's frames on `GET /split`: sessions, hidden states, requests for tokens.

Frames are handled in their order, and each token request has a task of its own. When the edge leaves, these tasks are
cancelled; when the server stops, they are completed first.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

from aiohttp import web
from msgspec import Struct

from cloud.split.context_manager import CloudContextManager
from cloud.split.pool import TailPool
from cloud.split.sampling import check_sampling
from cloud.websocket import ClientLeftError, ClientSocket
from common.errors import (
    ForeignSession,
    FrameworkError,
    ModelMismatch,
    OverloadedError,
    RequestError,
    StatesMissing,
    StoppingError,
)
from common.http.in_flight import IN_FLIGHT
from common.http.messages import TENANT, client_error, error_object
from common.protocol import codec
from common.protocol.hidden_states import PackedStates
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
from common.protocol.split_manifest import SplitManifest
from common.types import ErrorObject, StateEncoding

MAX_SESSIONS = 1024
"""Open at once on one connection."""
MAX_ASKS = 4
"""Token requests of one session that may wait: an edge may have given up some of them."""


class SessionField(Struct):
    """The session of a frame, also of one that is otherwise unreadable."""

    session: str = ""


@dataclass(frozen=True)
class SplitBackend:
    """What all connections share.

    `work` is entered around each token request with the length of its sequence; it raises OverloadedError, or
    EngineError when the engine is lost.
    """

    manifest: SplitManifest
    contexts: CloudContextManager
    pool: TailPool
    work: Callable[[int], AbstractContextManager[object]]


@dataclass
class EdgeConnection:
    """One edge's connection: the sessions that it has opened, and the tasks of its token requests."""

    backend: SplitBackend
    request: web.Request
    socket: ClientSocket
    encodings: dict[str, StateEncoding] = field(default_factory=dict)
    asks: dict[str, set[asyncio.Task[None]]] = field(default_factory=dict)

    async def serve(self) -> None:
        """Raises ClientLeftError when the edge leaves; StoppingError when the server stops, all requests answered."""
        stopping = asyncio.create_task(self.request.app[IN_FLIGHT].draining.wait())
        try:
            while (data := await self._receive(stopping)) is not None:
                await self._handle(data)
        finally:
            stopping.cancel()
        await asyncio.gather(*(task for tasks in self.asks.values() for task in tasks))
        raise StoppingError("the server is stopping")

    async def leave(self) -> None:
        """Cancels all token requests that are still running."""
        tasks = [task for session in list(self.asks) for task in self._cancel(session)]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, frame: CloudFrame) -> None:
        """Raises ClientLeftError when the edge has left, or reads too slowly."""
        await self.socket.send(codec.encode(frame, codec.MSGPACK))

    async def _receive(self, stopping: asyncio.Task[bool]) -> bytes | None:
        """The next frame; None when the server stops."""
        receiving = asyncio.create_task(self.socket.receive())
        receiving.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, even if not raised here
        try:
            await asyncio.wait((receiving, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                return None
        finally:
            receiving.cancel()
        frame = receiving.result()
        if frame.text:
            raise RequestError("frames are MessagePack, in binary frames")
        return frame.data

    async def _handle(self, data: bytes) -> None:
        """Executes one frame. A wrong one has no effect but an error frame, and the loss of its session."""
        session, id = "", None
        try:
            frame: EdgeFrame = codec.decode(data, EdgeFrame, codec.MSGPACK)  # type: ignore[arg-type]
            session, id = frame.session, frame.id if isinstance(frame, AskFrame) else None
            self._execute(frame)
        except (ForeignSession, OverloadedError) as error:  # the session's states are still right
            await self.send(fault_frame(error, session, id))
        except RequestError as error:
            session = session or _session_of(data)
            self._forget(session)
            await self.send(fault_frame(error, session, id))

    def _execute(self, frame: EdgeFrame) -> None:
        match frame:
            case OpenFrame():
                self._open(frame)
            case StatesFrame():
                self._store_states(frame)
            case AskFrame():
                self._ask(frame)
            case CloseFrame():
                self._forget(frame.session)

    def _open(self, frame: OpenFrame) -> None:
        if frame.fingerprint != self.backend.manifest.fingerprint:
            raise ModelMismatch(
                "edge and cloud have parts of different models: partition the model again, and use the result on both"
            )
        if len(self.encodings) >= MAX_SESSIONS and frame.session not in self.encodings:
            raise OverloadedError(f"{MAX_SESSIONS} sessions are open on this connection")
        if frame.parent is not None and frame.keep:
            self._cancel(frame.parent)
            self.backend.pool.resume(frame.session, frame.parent, frame.keep, self.request[TENANT])
            self.encodings.pop(frame.parent, None)
        self.backend.contexts.open(frame.session, self.request[TENANT])
        self.encodings[frame.session] = frame.encoding

    def _store_states(self, frame: StatesFrame) -> None:
        self._check_open(frame.session)
        encoding = frame.encoding or self.encodings[frame.session]
        states = PackedStates(encoding, self.backend.manifest.hidden, frame.data, frame.scales)
        states.check(frame.count)
        self.backend.contexts.open(frame.session, self.request[TENANT])  # it may have been dropped meanwhile
        self.backend.contexts.receive(frame.session, frame.start, states)

    def _ask(self, frame: AskFrame) -> None:
        self._check_open(frame.session)
        check_sampling(frame.sampling)
        asks = self.asks.setdefault(frame.session, set())
        if len(asks) >= MAX_ASKS:
            raise OverloadedError(f"{MAX_ASKS} token requests of this session are waiting")
        task = asyncio.create_task(self._answer(frame))
        asks.add(task)
        task.add_done_callback(asks.discard)

    async def _answer(self, ask: AskFrame) -> None:
        began = time.perf_counter()
        frame: CloudFrame
        try:
            with self.backend.work(ask.position + 1):
                drawn = await self.backend.pool.token(ask.session, ask.position, ask.sampling, ask.top)
            frame = TokenFrame(
                session=ask.session,
                id=ask.id,
                token_id=drawn.token_id,
                confidence=math.exp(drawn.logprob),
                logprob=drawn.logprob,
                cloud_ms=(time.perf_counter() - began) * 1000,
                computed=drawn.computed,
                cached=drawn.cached,
                top=drawn.top,
            )
        except Exception as error:
            failure = client_error(self.request, error)
            if isinstance(failure, RequestError) and not isinstance(failure, StatesMissing):
                self.encodings.pop(ask.session, None)
                self.backend.contexts.close(ask.session)
            frame = fault_frame(failure, ask.session, ask.id)
        with suppress(ClientLeftError):
            await self.send(frame)

    def _check_open(self, session: str) -> None:
        if session not in self.encodings:
            raise ForeignSession("open the session on this connection first")

    def _forget(self, session: str) -> None:
        """Drops a session that this connection has opened, and its token requests; does nothing to any other."""
        if self.encodings.pop(session, None) is not None:
            self._cancel(session)
            self.backend.contexts.close(session)

    def _cancel(self, session: str) -> list[asyncio.Task[None]]:
        tasks = list(self.asks.pop(session, ()))
        for task in tasks:
            task.cancel()
        return tasks


def fault_frame(error: FrameworkError, session: str = "", id: int | None = None) -> FaultFrame:
    """`error` as a frame, of one session or token request where these are given."""
    code = error_object(error)["error"]["code"]
    return FaultFrame(
        status=error.status,
        error=ErrorObject(error.message, error.type, error.param, code),
        session=session or None,
        id=id,
        held=error.held if isinstance(error, StatesMissing) else None,
    )


def _session_of(data: bytes) -> str:
    """The session that a frame names, even if the rest cannot be read; empty if there is none."""
    try:
        return codec.decode(data, SessionField, codec.MSGPACK).session
    except RequestError:
        return ""
