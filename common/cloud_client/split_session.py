"""Sends the hidden states of one answer to a cloud over `GET /split` and asks for tokens."""

import asyncio
import itertools
import uuid
from contextlib import suppress
from typing import Self

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from common.cloud_client.split_connection import SplitLink
from common.errors import (
    ContextLengthError,
    EndpointError,
    ForeignSession,
    ModelMismatch,
    OverloadedError,
    RequestError,
    StatesMissing,
)
from common.http.client import HTTPClient
from common.http.error_replies import Busy
from common.http.retry import ConnectionBroken
from common.protocol.hidden_states import PackedStates, pack
from common.protocol.split_frames import AskFrame, CloseFrame, FaultFrame, OpenFrame, StatesFrame, TokenFrame
from common.types import Sampling, StateEncoding

POSITIONS_PER_FRAME = 256
"""Limits a frame so that sessions take turns on the connection."""
ATTEMPTS = 3
"""Attempts for one token within its deadline: repeated when the connection broke or the cloud lacked states."""


class CloudToken(Struct, frozen=True, kw_only=True):
    """A token from the cloud; its fields are those of TokenFrame."""

    token_id: int
    confidence: float
    logprob: float
    cloud_ms: float
    computed: int
    cached: int
    top: list[tuple[int, float]] = []


class SplitCloud:
    """Owns one connection over `client`, opened on first use and again after a loss; use `async with` or `close()`."""

    def __init__(self, client: HTTPClient) -> None:
        self._client = client
        self._link: SplitLink | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that wait on it raise EndpointError."""
        if self._link is not None:
            link, self._link = self._link, None
            await link.close()

    def session(self, fingerprint: str, encoding: StateEncoding = StateEncoding.FP16) -> "SplitSession":
        """A new session for one answer of the model with this fingerprint; nothing is sent before its first use."""
        return SplitSession(self, fingerprint, StateEncoding(encoding))

    def link(self) -> SplitLink:
        """The current connection or a new one; raises EndpointError shortly after a connection could not be made."""
        if self._link is None or self._link.may_be_replaced():
            self._link = SplitLink(self._client)
        return self._link


class SplitSession:
    """The hidden states and questions of one answer; use `async with`, whose exit makes the cloud drop the session.

    Keeps all encoded states, so that it can send them again to a cloud that lost them. A further answer that begins
    with the same positions goes on with a `successor`. Used by one task at a time.
    """

    def __init__(self, cloud: SplitCloud, fingerprint: str, encoding: StateEncoding) -> None:
        self.bytes_up = 0
        """Bytes of the frames sent for this session, repeats included."""
        self.bytes_down = 0
        """Bytes of the frames received for this session."""
        self.positions = 0
        """Positions given to `send` so far."""
        self.id = uuid.uuid4().hex
        self.closed = False
        self.written = 0
        """Positions written to the connection, as far as this side knows."""
        self.fault: FaultFrame | None = None
        """A fault of the session that the cloud reported without a question."""
        self._cloud = cloud
        self._fingerprint = fingerprint
        self._encoding = encoding
        self._pieces: list[tuple[int, PackedStates]] = []
        self._question_ids = itertools.count()
        self._link: SplitLink | None = None
        self._predecessor: SplitSession | None = None
        """The session whose place this one takes when it is opened."""
        self._parent: str | None = None
        """The id of that session, as soon as this one was opened."""
        self._kept = 0
        """Positions that this one takes over."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Queues a CloseFrame without waiting."""
        self.close()

    @property
    def nbytes(self) -> int:
        """Size of the encoded states that this side keeps."""
        return sum(piece.nbytes for _, piece in self._pieces)

    def close(self) -> None:
        """Queues a CloseFrame without waiting."""
        self.closed = True
        if self._predecessor is not None:
            self._predecessor.close()
        if self._link is not None:
            self._link.put(self, CloseFrame(session=self.id))
        self._pieces.clear()

    def successor(self, keep: int) -> "SplitSession":
        """A session that begins with the first `keep` positions (>= 1) of this one, which must not be used any more.

        Nothing is sent before its first use; then the cloud renames this session, and forgets the other positions.
        """
        assert 1 <= keep <= self.positions, "positions that were given to `send`"
        new = SplitSession(self._cloud, self._fingerprint, self._encoding)
        new._predecessor, new._kept, new.positions = self, keep, keep
        if self._predecessor is not None:  # this one was never opened: only what it took over is at the cloud
            new._predecessor, new._kept = self._predecessor, min(keep, self._kept)
        new._pieces = [(at, piece.rows(0, min(len(piece), keep - at))) for at, piece in self._pieces if at < keep]
        self._pieces.clear()
        return new

    def send(self, states: NDArray[np.float32]) -> None:
        """Appends the hidden states [n, H] of the next n positions and queues them, without waiting.

        Raises RequestError for NaN or infinity. A lost cloud raises only in `token` and `flush`.
        """
        start = self.positions
        for at in range(0, len(states), POSITIONS_PER_FRAME):
            packed = pack(states[at : at + POSITIONS_PER_FRAME], self._encoding)
            self._pieces.append((self.positions, packed))
            self.positions += len(packed)
        if self._link is not None and self._link.failure is None:
            self._put_from(self._link, start)
            return
        with suppress(EndpointError, RequestError):  # states not written now are sent with the next connection
            self._connect()

    async def flush(self) -> None:
        """Waits until all states given to `send` are written to the socket; raises EndpointError."""
        await self._connect().flush()

    async def token(self, sampling: Sampling, deadline_seconds: float, top: int = 0) -> CloudToken:
        """The token after all positions sent so far, and the `top` likeliest; sends states again that the cloud lost.

        Session and connection stay usable after cancellation. Raises EndpointError if the cloud cannot be used within
        the deadline, RequestError (or a child) if it refuses.
        """
        try:
            async with asyncio.timeout(deadline_seconds):
                return await self._ask(sampling, top)
        except TimeoutError as error:
            raise EndpointError(f"the cloud gave no token within {deadline_seconds:g} s") from error

    async def _ask(self, sampling: Sampling, top: int) -> CloudToken:
        for last in (*[False] * (ATTEMPTS - 1), True):
            try:
                link = self._connect()
                self._raise_fault()
                question = AskFrame(
                    session=self.id, id=next(self._question_ids), position=self.positions, sampling=sampling, top=top
                )
                reply = await link.ask(self, question)
            except ConnectionBroken:
                if last:
                    raise
                continue
            if isinstance(reply, TokenFrame):
                return msgspec.convert(reply, CloudToken, from_attributes=True)
            if reply.error.code != StatesMissing.code:
                self._link = None  # after a refusal the cloud has dropped the session
                raise _error_from_fault(reply)
            self._put_from(link, min(reply.held or 0, self.positions))
        raise EndpointError("the cloud loses the hidden states that it is sent")

    def _connect(self) -> SplitLink:
        """The connection, on which this session's open frame and all its states are queued."""
        link = self._cloud.link()
        if link is not self._link:
            self._link = link
            self._take_over()
            opening = OpenFrame(session=self.id, fingerprint=self._fingerprint, encoding=self._encoding)
            opening.parent, opening.keep = self._parent, self._kept
            link.put(self, opening)
            self._put_from(link, self.written)
        return link

    def _take_over(self) -> None:
        """Before the first opening: what the predecessor has not written yet, this session writes."""
        if (predecessor := self._predecessor) is not None:
            self._predecessor, self._parent = None, predecessor.id
            predecessor.closed = True
            self.written = min(predecessor.written, self._kept)

    def _put_from(self, link: SplitLink, position: int) -> None:
        for start, piece in self._pieces:
            skip = position - start
            if skip >= len(piece):
                continue
            if skip > 0:
                start, piece = position, piece.rows(skip, len(piece))
            states = StatesFrame(session=self.id, start=start, count=len(piece), data=piece.data, scales=piece.scales)
            states.encoding = None if piece.encoding is self._encoding else piece.encoding
            link.put(self, states)

    def _raise_fault(self) -> None:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            self._link = None
            raise _error_from_fault(fault)


def _error_from_fault(fault: FaultFrame) -> EndpointError | RequestError:
    """RequestError (or a child) for a 4xx other than 429, Busy for 429, EndpointError for everything else."""
    error = fault.error
    if fault.status == OverloadedError.status:
        return Busy(error.message)
    if not 400 <= fault.status < 500:
        return EndpointError(f"the cloud says: {error.message}")
    kinds: dict[str | None, type[RequestError]] = {
        kind.code: kind for kind in (ModelMismatch, ForeignSession, ContextLengthError)
    }
    return kinds.get(error.code, RequestError)(error.message, error.param)
