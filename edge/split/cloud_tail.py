"""Where answers of a split model get what no exit is sure of: a cloud each, and its states there. Knows no exits."""

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from common.cloud_client.pool import Cloud, CloudPool
from common.cloud_client.split_session import CloudToken, SplitCloud, SplitSession
from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from common.types import Sampling, StateEncoding
from edge.llama.batch import States


class SplitClouds:
    """A connection for hidden states to each of `clouds`; owns them: `async with`, within that of `clouds`."""

    def __init__(self, clouds: CloudPool, connect: Callable[[HTTPClient], SplitCloud] = SplitCloud) -> None:
        self._clouds = clouds
        self._connections = {cloud.url: connect(cloud.client) for cloud in clouds}
        self.pick = clouds.pick
        self.track_call = clouds.track_call

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for connection in self._connections.values():
            await connection.close()

    def to(self, cloud: Cloud) -> SplitCloud:
        return self._connections[cloud.url]


class CloudTail:
    """One answer's way to the rest of its model: `async with`, used by one task at a time.

    A cloud that was lost is not tried again for `pause_seconds`, in which nothing waits for it; then this one, or
    another that can be asked, gets all states that it has not had.
    """

    def __init__(
        self,
        clouds: SplitClouds,
        prompt: Sequence[int],
        fingerprint: str,
        kind: StateEncoding,
        deadline_seconds: float,
        pause_seconds: float,
        async_upload: bool = True,
    ) -> None:
        self.calls = 0
        """Questions, those that were not answered included."""
        self.waited_ms = 0.0
        """Milliseconds that the answer waited for tokens."""
        self.computed = 0
        """Positions that clouds computed for its tokens."""
        self._clouds = clouds
        self._prompt = list(prompt)
        self._fingerprint = fingerprint
        self._kind = kind
        self._deadline = deadline_seconds
        self._pause = pause_seconds
        self._async_upload = async_upload
        self._failed_at = -pause_seconds
        self._failure = ""
        self._cloud: Cloud | None = None
        self._session: SplitSession | None = None
        self._left: list[SplitSession] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for session in self._sessions:
            await session.__aexit__(*error)

    @property
    def bytes_up(self) -> int:
        return sum(session.bytes_up for session in self._sessions)

    @property
    def bytes_down(self) -> int:
        return sum(session.bytes_down for session in self._sessions)

    @property
    def sent(self) -> int:
        """Positions whose states are given to the connection."""
        return self._session.positions if self._session else 0

    def upload(self, states: States) -> None:
        """Hands over, without waiting, what the cloud has not had of these states, [n, H]; or leaves it for later."""
        if not self._async_upload or self._paused:
            return
        try:
            self._send(states)
        except (EndpointError, RequestError) as error:
            self._lost(error)

    async def token(self, states: States, sampling: Sampling) -> CloudToken:
        """The token after all positions of `states`, [n, H].

        Raises EndpointError when no cloud gives one within the deadline, RequestError when one refuses; at once, if
        that was so a moment ago.
        """
        if self._paused:
            raise EndpointError(self._failure)
        began = time.monotonic()
        self.calls += 1
        try:
            session = self._send(states)
            assert self._cloud is not None
            with self._clouds.track_call(self._cloud):
                token = await self._asked(session, sampling)
        except (EndpointError, RequestError) as error:
            self._lost(error)
            raise
        finally:
            self.waited_ms += (time.monotonic() - began) * 1e3
        self.computed += token.computed
        return token

    async def _asked(self, session: SplitSession, sampling: Sampling) -> CloudToken:
        if self._async_upload:
            return await session.token(sampling, self._deadline)
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline):
                await session.flush()
        except TimeoutError as error:
            raise EndpointError(f"the cloud took no states within {self._deadline:g} s") from error
        return await session.token(sampling, max(0.0, self._deadline - (time.monotonic() - began)))

    def _send(self, states: States) -> SplitSession:
        if self._cloud is None or self._session is None or not self._cloud.breaker.closed:
            self._cloud = self._clouds.pick(self._prompt)
            if self._session is not None:
                self._left.append(self._session)
            self._session = self._clouds.to(self._cloud).session(self._fingerprint, self._kind)
        if len(states) > self._session.positions:
            self._session.send(states[self._session.positions :])
        return self._session

    def _lost(self, error: EndpointError | RequestError) -> None:
        self._failed_at, self._failure = time.monotonic(), error.message

    @property
    def _paused(self) -> bool:
        return time.monotonic() - self._failed_at < self._pause

    @property
    def _sessions(self) -> list[SplitSession]:
        return [*self._left, self._session] if self._session else self._left
