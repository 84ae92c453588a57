"""A prompt as edge and cloud read it, and how what follows passes between them. Knows no tokenizer."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from common.decoding.interfaces import Drafter, Stream, Verifier
from common.errors import EndpointError, VocabularyError
from common.types import Sampling, Verdict


@dataclass(frozen=True)
class SharedPrompt:
    """`ids` are those that the answer is told in: the cloud's, where it takes part; `edge_ids` the edge's.

    `piece` spells the answer's tokens. `vocabulary` is the fingerprint that the cloud was last known by. With `unmet`,
    which says why, the cloud must not be asked: nobody knows what ids mean to it.
    """

    edge_ids: list[int]
    ids: list[int]
    piece: Callable[[int], bytes]
    vocabulary: str = ""
    drafter: Callable[[Drafter], Drafter] = lambda drafter: drafter
    """The edge's drafter, in the answer's ids."""
    unmet: str = ""
    forget: Callable[[], None] = lambda: None
    """Called when the cloud turns out to have another vocabulary by now."""

    def verifier(self, cloud: Verifier) -> Verifier:
        """`cloud`, asked only in ids that mean the same to it."""
        return MetVerifier(cloud, self)

    @property
    def longest(self) -> int:
        """Tokens, in whichever ids they are more."""
        return max(len(self.ids), len(self.edge_ids))


class MetVerifier:
    """A verifier that fails as a lost one does where its vocabulary is not known, or is another by now."""

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
        if self._prompt.unmet:
            raise EndpointError(self._prompt.unmet)
        try:
            return await self._cloud.verify(token_ids, draft, sampling, max_tokens)
        except VocabularyError:
            self._prompt.forget()
            raise

    @asynccontextmanager
    async def stream(self, token_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> AsyncIterator[Stream]:
        if self._prompt.unmet:
            raise EndpointError(self._prompt.unmet)
        try:
            async with self._cloud.stream(token_ids, max_tokens, sampling) as stream:
                yield stream
        except VocabularyError:
            self._prompt.forget()
            raise
