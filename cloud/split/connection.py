"""What one edge's connection says, done frame by frame: sessions, states, questions. Knows no vLLM.

Frames are read in their order, and each question has a task of its own; when the connection ends (the edge has left,
the server stops), these are cancelled.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web
from msgspec import Struct

from cloud.split.context_manager import CloudContextManager
from cloud.split.pool import TailPool
from cloud.verify.validation import require
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
from common.http.messages import EXCHANGE, TENANT, Exchange, client_error, error_object
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
from common.types import ErrorObject, Sampling, StateEncoding

SEND_SECONDS = 10.0
"""How long an edge may leave what was sent to it unread before it is cut off."""
MOST_SESSIONS = 1024
"""Open at once on one connection."""
MOST_ASKS = 4
"""Questions of one session that may wait: an edge that gave one up goes on with the next."""


class LeftError(ConnectionError):
    """The edge is gone: there is nobody to tell."""


class Named(Struct):
    """What a frame that cannot be read says of its session."""

    session: str = ""


@dataclass(frozen=True)
class Served:
    """What all connections share. `work` is entered around each question with the length of its sequence.

    It raises OverloadedError, or EngineError when the engine is lost.
    """

    manifest: SplitManifest
    contexts: CloudContextManager
    pool: TailPool
    work: Callable[[int], AbstractContextManager[object]]


@dataclass
class EdgeConnection:
    """One edge's connection: which sessions it has opened, and the tasks of its questions."""

    served: Served
    request: web.Request
    ws: web.WebSocketResponse
    kinds: dict[str, StateEncoding] = field(default_factory=dict)
    asks: dict[str, set[asyncio.Task[None]]] = field(default_factory=dict)

    async def serve(self) -> None:
        """Raises LeftError when the edge leaves; StoppingError, all questions answered, when the server stops."""
        stopping = asyncio.create_task(self.request.app[IN_FLIGHT].draining.wait())
        try:
            while (data := await self._received(stopping)) is not None:
                await self._take(data)
        finally:
            stopping.cancel()
        await asyncio.gather(*(task for tasks in self.asks.values() for task in tasks))
        raise StoppingError("the server is stopping")

    async def leave(self) -> None:
        """Ends what the edge still waits for."""
        tasks = [task for session in list(self.asks) for task in self._cancel(session)]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, frame: CloudFrame) -> None:
        """Raises LeftError when the edge is gone, or reads too slowly."""
        body = codec.encode(frame, codec.MSGPACK)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self.ws.send_bytes(body)
        except (TimeoutError, ConnectionError) as error:
            raise LeftError from error
        self._exchange.record_sent(len(body))

    async def _received(self, stopping: asyncio.Task[bool]) -> bytes | None:
        """The next frame; None when the server stops."""
        receiving = asyncio.ensure_future(self.ws.receive())
        try:
            await asyncio.wait((receiving, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                return None
        finally:
            receiving.cancel()
        message = receiving.result()
        if message.type is WSMsgType.TEXT:
            raise RequestError("frames are MessagePack, in binary frames")
        if message.type is not WSMsgType.BINARY:
            raise LeftError
        self._exchange.bytes_in += len(message.data)
        return bytes(message.data)

    async def _take(self, data: bytes) -> None:
        """Does what one frame says. For a wrong one it does nothing, forgets the session, and says so."""
        session, id = "", None
        try:
            frame: EdgeFrame = codec.decode(data, EdgeFrame, codec.MSGPACK)  # type: ignore[arg-type]
            session, id = frame.session, frame.id if isinstance(frame, AskFrame) else None
            self._do(frame)
        except (ForeignSession, OverloadedError) as error:  # nothing is wrong with what is held
            await self.send(fault(error, session, id))
        except RequestError as error:
            session = session or _session_of(data)
            self._forget(session)
            await self.send(fault(error, session, id))

    def _do(self, frame: EdgeFrame) -> None:
        match frame:
            case OpenFrame():
                self._open(frame)
            case StatesFrame():
                self._keep(frame)
            case AskFrame():
                self._ask(frame)
            case CloseFrame():
                self._forget(frame.session)

    def _open(self, frame: OpenFrame) -> None:
        if frame.fingerprint != self.served.manifest.fingerprint:
            raise ModelMismatch("edge and cloud have pieces of different models: cut one again, and use it on both")
        if len(self.kinds) >= MOST_SESSIONS and frame.session not in self.kinds:
            raise OverloadedError(f"{MOST_SESSIONS} sessions are open on this connection")
        self.served.contexts.open(frame.session, self.request[TENANT])
        self.kinds[frame.session] = frame.encoding

    def _keep(self, frame: StatesFrame) -> None:
        self._check_open(frame.session)
        encoding = frame.encoding or self.kinds[frame.session]
        states = PackedStates(encoding, self.served.manifest.hidden, frame.data, frame.scales)
        states.check(frame.count)
        self.served.contexts.open(frame.session, self.request[TENANT])  # it may have been dropped since
        self.served.contexts.receive(frame.session, frame.start, states)

    def _ask(self, frame: AskFrame) -> None:
        self._check_open(frame.session)
        check_sampling(frame.sampling)
        asks = self.asks.setdefault(frame.session, set())
        if len(asks) >= MOST_ASKS:
            raise OverloadedError(f"{MOST_ASKS} questions of this session are waiting")
        task = asyncio.create_task(self._answer(frame))
        asks.add(task)
        task.add_done_callback(asks.discard)

    async def _answer(self, ask: AskFrame) -> None:
        began = time.perf_counter()
        frame: CloudFrame
        try:
            with self.served.work(ask.position + 1):
                drawn = await self.served.pool.token(ask.session, ask.position, ask.sampling)
            frame = TokenFrame(
                session=ask.session,
                id=ask.id,
                token_id=drawn.token_id,
                confidence=math.exp(drawn.logprob),
                logprob=drawn.logprob,
                cloud_ms=(time.perf_counter() - began) * 1000,
                computed=drawn.computed,
                cached=drawn.cached,
            )
        except Exception as error:
            failure = client_error(self.request, error)
            if isinstance(failure, RequestError) and not isinstance(failure, StatesMissing):
                self.kinds.pop(ask.session, None)
                self.served.contexts.close(ask.session)
            frame = fault(failure, ask.session, ask.id)
        with suppress(LeftError):
            await self.send(frame)

    def _check_open(self, session: str) -> None:
        if session not in self.kinds:
            raise ForeignSession("open the session on this connection first")

    def _forget(self, session: str) -> None:
        """Drops a session of this connection's, and its questions; anybody else's stays as it is."""
        if self.kinds.pop(session, None) is not None:
            self._cancel(session)
            self.served.contexts.close(session)

    def _cancel(self, session: str) -> list[asyncio.Task[None]]:
        tasks = list(self.asks.pop(session, ()))
        for task in tasks:
            task.cancel()
        return tasks

    @property
    def _exchange(self) -> Exchange:
        return self.request[EXCHANGE]


def check_sampling(sampling: Sampling) -> None:
    """Raises RequestError for what vLLM would refuse, and for what wants to know tokens: the cloud sees none here."""
    require(0 <= sampling.temperature <= 2, "must be in 0..2", "sampling.temperature")
    require(0 < sampling.top_p <= 1, "must be above 0 and at most 1", "sampling.top_p")
    require(0 <= sampling.top_k < 2**31, "must be in 0..2147483647", "sampling.top_k")
    require(0 <= sampling.min_p <= 1, "must be in 0..1", "sampling.min_p")
    require(0 <= (sampling.seed or 0) < 2**63, "must be in 0..9223372036854775807", "sampling.seed")
    for name, off in (("presence_penalty", 0), ("frequency_penalty", 0), ("repetition_penalty", 1)):
        require(
            getattr(sampling, name) == off, "needs tokens, which a split model's cloud does not see", f"sampling.{name}"
        )
    require(
        sampling.json_schema is None, "needs tokens, which a split model's cloud does not see", "sampling.json_schema"
    )


def fault(error: FrameworkError, session: str = "", id: int | None = None) -> FaultFrame:
    """`error` as a frame."""
    said = error_object(error)["error"]
    return FaultFrame(
        status=error.status,
        error=ErrorObject(error.message, error.type, error.param, said["code"]),
        session=session or None,
        id=id,
        held=error.held if isinstance(error, StatesMissing) else None,
    )


def _session_of(data: bytes) -> str:
    """The session that a frame names, readable or not."""
    try:
        return codec.decode(data, Named, codec.MSGPACK).session
    except RequestError:
        return ""
