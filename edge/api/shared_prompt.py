"""A prompt in the token ids of edge and cloud, and how drafts and verdicts are translated between them."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from common.decoding.interfaces import Drafter, Stream, Verifier
from common.errors import EndpointError, VocabularyError
from common.types import Sampling, Verdict


@dataclass(frozen=True)
class SharedPrompt:
    """`ids`: in the answer's vocabulary, which is the cloud's if it takes part; `edge_ids`: in the edge's.

    `piece` gives the bytes of the answer's tokens. `vocabulary` is the fingerprint of the cloud's, as last seen.
    If that vocabulary could not be learned, `unknown_because` says why, and the cloud is sent no token ids.
    """

    edge_ids: list[int]
    ids: list[int]
    piece: Callable[[int], bytes]
    vocabulary: str = ""
    context_length: int | None = None
    """Tokens of the cloud's context, if it has told that."""
    drafter: Callable[[Drafter], Drafter] = lambda drafter: drafter
    """Makes the edge's drafter take and give the answer's ids."""
    unknown_because: str = ""
    forget: Callable[[], None] = lambda: None
    """Called when the cloud has changed its vocabulary."""

    def verifier(self, cloud: Verifier) -> Verifier:
        """`cloud`, asked only in token ids of its own vocabulary."""
        return VocabularyGuard(cloud, self)


class VocabularyGuard:
    """A verifier that fails like a lost cloud if the cloud's vocabulary is unknown or has changed."""

    def __init__(self, cloud: Verifier, prompt: SharedPrompt) -> None:
        self._cloud = cloud
        self._prompt = prompt

    @property
    def calls(self) -> int:
        return self._cloud.calls

    @property
    def bytes_up(self) -> int:
        return self._cloud.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._cloud.bytes_down

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        if self._prompt.unknown_because:
            raise EndpointError(self._prompt.unknown_because)
        try:
            return await self._cloud.verify(token_ids, draft, sampling, max_tokens)
        except VocabularyError:
            self._prompt.forget()
            raise

    @asynccontextmanager
    async def stream(self, token_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> AsyncIterator[Stream]:
        if self._prompt.unknown_because:
            raise EndpointError(self._prompt.unknown_because)
        try:
            async with self._cloud.stream(token_ids, max_tokens, sampling) as stream:
                yield stream
        except VocabularyError:
            self._prompt.forget()
            raise
