"""The edge's end of `GET /split`: one connection to a cloud, many sessions on it. Knows no engine and no exits."""

from typing import Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from common.connection import HTTPClient
from common.split_frames import Kind
from common.types import Sampling


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
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; what waits on it fails with EndpointError."""

    def session(self, fingerprint: str, kind: Kind = Kind.FP16) -> "SplitSession":
        """A new session for an answer of the model with this fingerprint; nothing is sent before its first use."""
        raise NotImplementedError


class SplitSession:
    """One answer's hidden states and questions; `async with` it: leaving it makes the cloud forget the session.

    It keeps all that was sent, encoded, so that a cloud that has lost it can be sent it again. Used by one task at a
    time.
    """

    bytes_up: int
    """Bytes of the frames sent for this session, repeats included."""
    bytes_down: int
    """Bytes of the frames that came for it."""
    positions: int
    """Positions whose hidden states were given to `send` so far."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Sends Close without waiting."""

    def send(self, states: NDArray[np.float32]) -> None:
        """Appends the hidden states [n, H] of the next n positions and hands them to the writer, without waiting.

        Never fails for want of a cloud: then `token` says so. Raises RequestError for NaN or infinity.
        """
        raise NotImplementedError

    async def flush(self) -> None:
        """Returns when all that was given to `send` is written to the socket; raises EndpointError."""
        raise NotImplementedError

    async def token(self, sampling: Sampling, deadline_seconds: float) -> CloudToken:
        """The token after all positions sent so far; states that the cloud has lost are sent again on the way.

        Cancelling it leaves session and connection usable. Raises EndpointError when the cloud cannot be used within
        the deadline, RequestError (or a child) when it refuses.
        """
        raise NotImplementedError
