"""The two sides of the pipeline: who drafts, and who verifies. Knows no engine, no HTTP and no policy."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from common.protocol.stream_frames import EndFrame, TokensFrame
from common.types import Draft, Sampling, Verdict


class Drafter(Protocol):
    """The edge model, in process or over HTTP."""

    async def draft(
        self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop_below: float = 0.0
    ) -> Draft:
        """Up to `limit` (>= 1) tokens after `token_ids`; whatever it held beyond them is rolled back.

        None follows a token that brings the product of the draft's confidences below `stop_below`, in [0, 1]. Asked
        for one thing at a time; cancelling ends the work.
        """
        ...


class Stream(Protocol):
    """An answer that the cloud goes on with by itself; iterate over its frames, and send drafts meanwhile."""

    @property
    def end(self) -> EndFrame | None:
        """What came of it, once all tokens are here."""
        ...

    @property
    def opened_in(self) -> float:
        """Seconds that the handshakes of TCP and WebSocket took: two round trips."""
        ...

    def __aiter__(self) -> AsyncIterator[TokensFrame]:
        """Raises EndpointError when the cloud is lost."""
        ...

    async def draft(self, position: int, token_ids: Sequence[int]) -> None:
        """Offers what may follow the first `position` tokens of prompt and answer; it may come too late."""
        ...


class Verifier(Protocol):
    """The cloud model, over HTTP; counts what it sends and receives."""

    @property
    def calls(self) -> int: ...
    @property
    def bytes_up(self) -> int: ...
    @property
    def bytes_down(self) -> int: ...

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        """The cloud's tokens after `token_ids`; up to `max_tokens` more than it accepts. Raises EndpointError."""
        ...

    def stream(
        self, token_ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> AbstractAsyncContextManager[Stream]:
        """The cloud's answer to `token_ids`, in one stream; leaving it ends it. Raises EndpointError on entering."""
        ...
