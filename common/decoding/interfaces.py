"""The two sides of the pipeline as Protocols: the drafter (edge) and the verifier (cloud)."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from common.http.traffic import Traffic
from common.protocol.stream_frames import EndFrame, TokensFrame
from common.types import NEVER, Draft, Sampling, StopRule, Verdict


class Drafter(Protocol):
    """The edge model, in process or over HTTP."""

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        """Up to `limit` (>= 1) tokens after `token_ids`; its KV beyond them is rolled back.

        None where `token_ids` fill the edge's context.

        The draft also ends where `stop` says. One call at a time; cancelling ends the work.
        """
        ...


class LeasedDrafter(Drafter, Protocol):
    """A drafter that holds a part of the edge's model from its first draft on."""

    async def release(self) -> None:
        """Gives that back before the answer ends; another draft would take it again."""
        ...


async def holds_nothing() -> None:
    """The `release` of a drafter that holds nothing."""


class Stream(Protocol):
    """An answer that the cloud streams: iterate over its frames, and send drafts meanwhile."""

    @property
    def end(self) -> EndFrame | None:
        """The closing frame, once all tokens have arrived."""
        ...

    @property
    def handshake_seconds(self) -> float:
        """Time of the TCP and WebSocket handshakes, two round trips; 0 on a connection that was already open."""
        ...

    def __aiter__(self) -> AsyncIterator[TokensFrame]:
        """Raises EndpointError when the cloud is lost."""
        ...

    async def draft(self, position: int, token_ids: Sequence[int]) -> None:
        """Sends a draft to follow the first `position` tokens of prompt and answer; it may arrive too late."""
        ...


class Verifier(Protocol):
    """The cloud model, over HTTP."""

    @property
    def traffic(self) -> Traffic:
        """Its calls and their bytes so far."""
        ...

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        """The cloud's tokens after `token_ids`: those of `draft` that it accepts, then up to `max_tokens` of its own.

        Raises EndpointError when the cloud is lost, ContextLengthError when `token_ids` fill its context.
        """
        ...

    def stream(
        self, token_ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> AbstractAsyncContextManager[Stream]:
        """The cloud's answer to `token_ids` in one stream; leaving ends it. Raises EndpointError on entering."""
        ...
