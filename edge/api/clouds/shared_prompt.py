"""A prompt in the token ids of edge and cloud, and how drafts and verdicts are translated between them."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from common.decoding.interfaces import Drafter, Stream, Verifier
from common.decoding.policy import Handover
from common.errors import EndpointError, VocabularyError
from common.http.traffic import Traffic
from common.protocol.vocabulary import VocabularyInfo
from common.types import Sampling, Verdict
from edge.text.conversation import Conversation, WrittenPrompt


class Piece(Protocol):
    """The bytes of one token, perhaps only part of a character; empty for a special token unless `special`."""

    def __call__(self, token_id: int, /, special: bool = False) -> bytes: ...


@dataclass(frozen=True)
class SharedPrompt:
    """`ids`: in the answer's vocabulary, which is the cloud's if it takes part; `edge_ids`: in the edge's.

    `piece` gives the bytes of the answer's tokens, also of special ones. `vocabulary` is the fingerprint of the
    cloud's, as last seen. If it could not be learned, `unknown_because` says why, and the cloud is sent no token ids.
    """

    edge_ids: list[int]
    ids: list[int]
    piece: Piece
    vocabulary: str = ""
    context_length: int | None = None
    """Tokens of the cloud's context, if it has told that."""
    drafter: Callable[[Drafter], Drafter] = lambda drafter: drafter
    """Makes the edge's drafter take and give the answer's ids."""
    written: WrittenPrompt | None = None
    """What these ids are of, if a chat template wrote it."""
    unknown_because: str = ""
    encode: Callable[[str], list[int]] = lambda text: []
    """The ids of an answer's text."""
    encode_marks: Callable[[str], list[int]] = lambda text: []
    """The ids of a text in which special tokens are spelled out."""
    end_tokens: Collection[int] = ()
    """The tokens that end an answer."""
    forget: Callable[[], None] = lambda: None
    """Called when the cloud has changed its vocabulary."""

    generator: Callable[[], Verifier] | None = None
    """Makes an answer's client of clouds that verify nothing, and read and write text."""
    handover: Handover | None = None
    """How such a cloud takes over an answer."""

    def verifier(self, cloud: Verifier) -> Verifier:
        """`cloud`, asked only in token ids of its own vocabulary; another one where it only reads and writes text."""
        return VocabularyGuard(cloud, self) if self.generator is None else self.generator()


class CloudKnowledge(Protocol):
    """What the edge knows of its clouds, whatever their kind: see `CloudVocabulary` and `TextClouds`."""

    @property
    def handover(self) -> Handover | None:
        """How a cloud takes over an answer; None: it verifies drafts."""
        ...

    @property
    def context_length(self) -> int | None:
        """Tokens of the cloud's context; None until it has told."""
        ...

    @property
    def cloud_model(self) -> str:
        """The name of the cloud's model; empty until it has told."""
        ...

    async def info(self) -> VocabularyInfo:
        """Fingerprint and size of the edge's vocabulary."""
        ...

    async def told(self) -> None:
        """Waits until a cloud has told its model and context; raises EndpointError if none does."""
        ...

    async def share(
        self,
        ids: list[int],
        *,
        text: str | None = None,
        conversation: Conversation | None = None,
        written: WrittenPrompt | None = None,
    ) -> SharedPrompt:
        """The prompt, `ids` to the edge, as edge and cloud read it; RequestError if they cannot both."""
        ...


class VocabularyGuard:
    """A verifier that fails like a lost cloud if the cloud's vocabulary is unknown or has changed."""

    def __init__(self, cloud: Verifier, prompt: SharedPrompt) -> None:
        self._cloud = cloud
        self._prompt = prompt

    @property
    def traffic(self) -> Traffic:
        return self._cloud.traffic

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
