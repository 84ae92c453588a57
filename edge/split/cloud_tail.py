"""Gets the tokens that no exit is confident of: sends hidden states to one of the clouds and asks it for the token."""

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from common.cloud_client.pool import Cloud, CloudPool
from common.cloud_client.split_session import CloudToken, SplitCloud, SplitSession
from common.config_edge import EdgeSplitConfig
from common.decoding.progress import waiting
from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from common.types import Sampling
from edge.llama.batch import States
from edge.split.kept_sessions import KeptSession

MEASURED_POSITIONS = 16
"""Fewer positions take as long as one does, and say nothing about the time per position."""
SLACK = 4.0
"""The deadline allows this many times what the positions took before: long contexts, busy clouds."""
UNMEASURED_SECONDS = 0.05
"""Per position, before the first measurement: a slow cloud."""


def deadline_seconds(base: float, positions: int, seconds_per_position: float) -> float:
    """The deadline of a token for which the cloud has to compute `positions`, which is many after a prompt."""
    if positions < MEASURED_POSITIONS:
        return base
    return base + SLACK * positions * (seconds_per_position or UNMEASURED_SECONDS)


class SplitClouds:
    """Owns a connection for hidden states to each of `clouds`: `async with`, inside that of `clouds`."""

    def __init__(self, clouds: CloudPool, connect: Callable[[HTTPClient], SplitCloud] = SplitCloud) -> None:
        self._clouds = clouds
        self._connections = {cloud.url: connect(cloud.client) for cloud in clouds}
        self.pick = clouds.pick
        self.track_call = clouds.track_call
        self.seconds_per_position = 0.0
        """As last measured; 0: never."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for connection in self._connections.values():
            await connection.close()

    def record(self, token: CloudToken) -> None:
        """Measures how long the cloud takes for a position."""
        if token.computed >= MEASURED_POSITIONS:
            self.seconds_per_position = token.cloud_ms / 1e3 / token.computed

    def to(self, cloud: Cloud) -> SplitCloud:
        return self._connections[cloud.url]


class CloudTail:
    """One answer's access to the cloud's layers: `async with`, used by one task at a time.

    After a failure no cloud is tried for `pause_seconds`; then the same cloud, or another one that is available, gets
    all states that it does not have. `config` names encoding, deadline and whether states are uploaded ahead. It goes
    on with the session `kept`, which is closed at the end unless it is taken out before.
    """

    def __init__(
        self,
        clouds: SplitClouds,
        prompt: Sequence[int],
        fingerprint: str,
        config: EdgeSplitConfig,
        pause_seconds: float,
        kept: KeptSession | None = None,
    ) -> None:
        self.calls = 0
        """Requests for a token, failed ones included."""
        self.waited_ms = 0.0
        """Milliseconds that the answer waited for the cloud's tokens."""
        self.computed = 0
        """Positions that clouds computed for these tokens."""
        self._clouds = clouds
        self._prompt = list(prompt)
        self._fingerprint = fingerprint
        self._encoding = config.transfer
        self._base_deadline = config.deadline_ms / 1e3
        self._computed_to = 0
        """Positions whose KV the session's cloud holds for sure: one that was kept may be forgotten."""
        self._pause = pause_seconds
        self._async_upload = config.async_upload
        self._failed_at = -pause_seconds
        self._failure = ""
        self._cloud: Cloud | None = kept.cloud if kept else None
        self._session: SplitSession | None = kept.session if kept else None
        self._in_order = True
        """Whether nothing has failed since the last token, and no question is open."""
        self._earlier: list[SplitSession] = []
        """Sessions with clouds that were given up."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for session in self._sessions:
            await session.__aexit__(*error)

    def take_out(self, tokens: Sequence[int], tenant: str) -> KeptSession | None:
        """The session for further answers that begin with `tokens`, of `tenant`; None if there is none in order.

        Nor is one kept that holds more than `tokens`: the answer was left before it had read as far as an earlier one.
        """
        session, cloud = self._session, self._cloud
        if session is None or cloud is None or not self._in_order:
            return None
        if not 0 < session.positions <= len(tokens):
            return None
        self._session = None
        return KeptSession(cloud, session, list(tokens[: session.positions]), tenant)

    @property
    def bytes_up(self) -> int:
        return sum(session.bytes_up for session in self._sessions)

    @property
    def bytes_down(self) -> int:
        return sum(session.bytes_down for session in self._sessions)

    @property
    def sent(self) -> int:
        """Positions whose states were handed to the connection."""
        return self._session.positions if self._session else 0

    def upload(self, states: States) -> None:
        """Starts sending those of `states`, [n, H], that the cloud does not have; does nothing after a failure."""
        if not self._async_upload or self._paused:
            return
        try:
            self._send(states)
        except (EndpointError, RequestError) as error:
            self._record_failure(error)

    async def token(self, states: States, sampling: Sampling, top: int = 0) -> CloudToken:
        """The token after all positions of `states`, [n, H], and the `top` likeliest.

        Raises EndpointError if no cloud answers within the deadline, which grows with the positions that the cloud has
        yet to compute; RequestError if one refuses. During the pause
        after a failure it raises EndpointError at once.
        """
        if self._paused:
            raise EndpointError(self._failure)
        began = time.monotonic()
        self.calls += 1
        self._in_order = False
        try:
            session = self._send(states)
            assert self._cloud is not None
            with self._clouds.track_call(self._cloud):
                token = await self._ask(session, sampling, top)
        except (EndpointError, RequestError) as error:
            self._record_failure(error)
            raise
        finally:
            self.waited_ms += (time.monotonic() - began) * 1e3
        self._in_order = True
        self.computed += token.computed
        self._computed_to = len(states)
        self._clouds.record(token)
        return token

    async def _ask(self, session: SplitSession, sampling: Sampling, top: int) -> CloudToken:
        pending = session.positions - self._computed_to
        deadline = deadline_seconds(self._base_deadline, pending, self._clouds.seconds_per_position)
        with waiting("the cloud's last layers", time.monotonic):  # until the deadline
            return await self._within(deadline, session, sampling, top)

    async def _within(self, deadline: float, session: SplitSession, sampling: Sampling, top: int) -> CloudToken:
        if self._async_upload:
            return await session.token(sampling, deadline, top)
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline):
                await session.flush()
        except TimeoutError as error:
            raise EndpointError(f"the cloud took no states within {deadline:g} s") from error
        return await session.token(sampling, max(0.0, deadline - (time.monotonic() - began)), top)

    def _send(self, states: States) -> SplitSession:
        if self._cloud is None or self._session is None or not self._cloud.breaker.closed:
            self._cloud = self._clouds.pick(self._prompt)
            if self._session is not None:
                self._earlier.append(self._session)
            self._computed_to = 0
            self._session = self._clouds.to(self._cloud).session(self._fingerprint, self._encoding)
        if len(states) > self._session.positions:
            self._session.send(states[self._session.positions :])
        return self._session

    def _record_failure(self, error: EndpointError | RequestError) -> None:
        self._failed_at, self._failure = time.monotonic(), error.message
        self._computed_to = 0  # the cloud may have lost the KV
        self._in_order = False

    @property
    def _paused(self) -> bool:
        return time.monotonic() - self._failed_at < self._pause

    @property
    def _sessions(self) -> list[SplitSession]:
        return [*self._earlier, self._session] if self._session else self._earlier
