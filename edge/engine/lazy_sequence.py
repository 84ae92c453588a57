"""A lease that begins with the first draft: answers that the edge does not compute hold no sequence."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Self

from common.types import NEVER, NO_DRAFT, Draft, Sampling, StopRule
from edge.engine.edge_model import EdgeModel
from edge.engine.sequence import EdgeSequence


class LazySequence:
    """A drafter on a sequence of `engine`, leased by the first draft until the `async with` block ends.

    A draft waits for a free sequence; unless the answer is `admitted`, it raises OverloadedError if the queue is full.
    Where the tokens fill the edge's context it is empty: the cloud's may be longer.
    """

    def __init__(self, engine: EdgeModel, reuse: bool, admitted: bool = False, top_logprobs: int = 0) -> None:
        self._engine = engine
        self._top_logprobs = top_logprobs
        self._admitted = admitted
        self._reuse = reuse
        self._sequence: EdgeSequence | None = None
        self._lease = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.release()

    async def release(self) -> None:
        """Ends the lease; its KV stays for the next request, or the next draft."""
        self._sequence = None
        await self._lease.aclose()

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        """See `common.decoding.interfaces.Drafter`."""
        if len(token_ids) >= self._engine.context_length:
            return NO_DRAFT
        if self._sequence is None:
            lease = self._engine.sequence(token_ids, self._reuse, self._admitted)
            self._sequence = await self._lease.enter_async_context(lease)
        return await self._sequence.draft(token_ids, limit, sampling, self._top_logprobs, stop)
