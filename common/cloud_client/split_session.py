"""The edge's end of `GET /split`: hidden states go up as they come, tokens are asked for. Knows no engine, no exits."""

import asyncio
import itertools
import uuid
from contextlib import suppress
from typing import Self

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
from common.http.retry import Broken
from common.protocol.hidden_states import Packed, pack
from common.protocol.split_frames import (
    AskFrame,
    CloseFrame,
    FaultFrame,
    OpenFrame,
    StateEncoding,
    StatesFrame,
    TokenFrame,
)
from common.types import Sampling

PIECE = 256
"""Positions in one frame, so that sessions take turns on the connection."""
ATTEMPTS = 3
"""How often one question is asked, while its deadline lasts: again when the connection broke or states were missing."""


class CloudToken(Struct, frozen=True, kw_only=True):
    """A token of the cloud's with natural `logprob` and `confidence` (its probability), both at temperature 1.

    `cloud_ms`: milliseconds that the cloud took. `computed`: positions that its tail computed for this one token;
    `cached`: those whose keys and values it still had.
    """

    token_id: int
    confidence: float
    logprob: float
    cloud_ms: float
    computed: int
    cached: int


class SplitCloud:
    """Owns one connection over `client`, opened on first use and again after a loss: `async with`, or `close()`."""

    def __init__(self, client: HTTPClient) -> None:
        self._client = client
        self._link: SplitLink | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; what waits on it fails with EndpointError."""
        if self._link is not None:
            link, self._link = self._link, None
            await link.close()

    def session(self, fingerprint: str, kind: StateEncoding = StateEncoding.FP16) -> "SplitSession":
        """A new session for an answer of the model with this fingerprint; nothing is sent before its first use."""
        return SplitSession(self, fingerprint, StateEncoding(kind))

    def link(self) -> SplitLink:
        """The connection as it is, or a new one; raises EndpointError just after one could not be made."""
        if self._link is None or self._link.may_be_replaced():
            self._link = SplitLink(self._client)
        return self._link


class SplitSession:
    """One answer's hidden states and questions; `async with` it: leaving it makes the cloud forget the session.

    It keeps all that was sent, encoded, so that a cloud that has lost it can be sent it again. Used by one task at a
    time.
    """

    def __init__(self, cloud: SplitCloud, fingerprint: str, kind: StateEncoding) -> None:
        self.bytes_up = 0
        """Bytes of the frames sent for this session, repeats included."""
        self.bytes_down = 0
        """Bytes of the frames that came for it."""
        self.positions = 0
        """Positions whose hidden states were given to `send` so far."""
        self.id = uuid.uuid4().hex
        self.left = False
        self.written = 0
        """Positions that are on their way, as far as this side knows."""
        self.failure: FaultFrame | None = None
        """What the cloud said of the session, unasked."""
        self._cloud = cloud
        self._fingerprint = fingerprint
        self._kind = kind
        self._pieces: list[tuple[int, Packed]] = []
        self._numbers = itertools.count()
        self._link: SplitLink | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Sends Close without waiting."""
        self.left = True
        if self._link is not None:
            self._link.put(self, CloseFrame(session=self.id))
        self._pieces.clear()

    def send(self, states: NDArray[np.float32]) -> None:
        """Appends the hidden states [n, H] of the next n positions and hands them to the writer, without waiting.

        Never fails for want of a cloud: then `token` says so. Raises RequestError for NaN or infinity.
        """
        start = self.positions
        for at in range(0, len(states), PIECE):
            packed = pack(states[at : at + PIECE], self._kind)
            self._pieces.append((self.positions, packed))
            self.positions += len(packed)
        if self._link is not None and self._link.failure is None:
            self._put_from(self._link, start)
            return
        with suppress(EndpointError, RequestError):  # what is not written goes with the next connection
            self._connect()

    async def flush(self) -> None:
        """Returns when all that was given to `send` is written to the socket; raises EndpointError."""
        await self._connect().flushed()

    async def token(self, sampling: Sampling, deadline_seconds: float) -> CloudToken:
        """The token after all positions sent so far; states that the cloud has lost are sent again on the way.

        Cancelling it leaves session and connection usable. Raises EndpointError when the cloud cannot be used within
        the deadline, RequestError (or a child) when it refuses.
        """
        try:
            async with asyncio.timeout(deadline_seconds):
                return await self._asked(sampling)
        except TimeoutError as error:
            raise EndpointError(f"the cloud gave no token within {deadline_seconds:g} s") from error

    async def _asked(self, sampling: Sampling) -> CloudToken:
        for last in (*[False] * (ATTEMPTS - 1), True):
            try:
                link = self._connect()
                self._check()
                ask = AskFrame(session=self.id, id=next(self._numbers), position=self.positions, sampling=sampling)
                reply = await link.ask(self, ask)
            except Broken:
                if last:
                    raise
                continue
            if isinstance(reply, TokenFrame):
                return _cloud_token(reply)
            if reply.error.code != StatesMissing.code:
                self._link = None  # after a refusal the cloud has forgotten the session
                raise _refusal(reply)
            self._put_from(link, min(reply.held or 0, self.positions))
        raise EndpointError("the cloud does not keep what it is sent")

    def _connect(self) -> SplitLink:
        """The connection, on which this session is open and all its states are on their way."""
        link = self._cloud.link()
        if link is not self._link:
            self._link = link
            link.put(self, OpenFrame(session=self.id, fingerprint=self._fingerprint, kind=self._kind))
            self._put_from(link, self.written)
        return link

    def _put_from(self, link: SplitLink, position: int) -> None:
        for start, piece in self._pieces:
            skip = position - start
            if skip >= len(piece):
                continue
            if skip > 0:
                start, piece = position, piece.rows(skip, len(piece))
            kind = None if piece.kind is self._kind else piece.kind
            states = StatesFrame(session=self.id, start=start, count=len(piece), data=piece.data, scales=piece.scales)
            states.kind = kind
            link.put(self, states)

    def _check(self) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            self._link = None
            raise _refusal(failure)


def _cloud_token(token: TokenFrame) -> CloudToken:
    return CloudToken(
        token_id=token.token_id,
        confidence=token.confidence,
        logprob=token.logprob,
        cloud_ms=token.cloud_ms,
        computed=token.computed,
        cached=token.cached,
    )


def _refusal(fault: FaultFrame) -> EndpointError | RequestError:
    """The cloud's fault as ours: 4xx is the question's, everything else the cloud's."""
    error = fault.error
    if fault.status == OverloadedError.status:
        return Busy(error.message)
    if not 400 <= fault.status < 500:
        return EndpointError(f"the cloud says: {error.message}")
    kinds: dict[str | None, type[RequestError]] = {
        kind.code: kind for kind in (ModelMismatch, ForeignSession, ContextLengthError)
    }
    return kinds.get(error.code, RequestError)(error.message, error.param)
