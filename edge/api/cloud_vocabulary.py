"""What the cloud's token ids mean to this edge: compared once, and prompts in the ids of both. Knows no answers."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar

from common.decoding.interfaces import Drafter
from common.decoding.vocab_translation import PaddedDrafter, TranslatingDrafter
from common.errors import EndpointError, RequestError, VocabularyError
from common.protocol.openai import Message
from common.protocol.vocabulary import Relation, RemoteVocabulary, TokenizerFile, VocabularyInfo, compare, fingerprint
from edge.api.shared_prompt import SharedPrompt
from edge.engine.engine import EdgeEngine
from edge.text.chat_template import ChatTemplate

MEET_SECONDS = 5.0
"""How long a request waits for a cloud that was never reached: as for any connection (common/http/client.py)."""
PIECES = 4096
"""Tokens that are spelled at a time: some milliseconds."""
T = TypeVar("T", covariant=True)


class Get(Protocol):
    """A GET from the cloud; raises EndpointError or RequestError."""

    async def __call__(self, path: str, type_: type[T], /) -> T: ...


@dataclass(frozen=True)
class Terms:
    """What came of a comparison; `vocabulary` and `template` are there if the two differ."""

    relation: Relation
    fingerprint: str
    shared: int
    """Ids below this are in both."""
    vocabulary: RemoteVocabulary | None = None
    template: ChatTemplate | None = None


class CloudVocabulary:
    """Compares at the start, else when the cloud is first wanted and there; until then no ids are for it.

    Owns the comparison under way and the cloud's chat templates: `async with`. `get` asks the cloud.
    """

    def __init__(self, engine: EdgeEngine, get: Get) -> None:
        self._engine = engine
        self._get = get
        self._terms: Terms | None = None
        self._comparing: asyncio.Task[Terms] | None = None
        self._ours: VocabularyInfo | None = None
        self._templates = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._comparison()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._comparing is not None:
            self._comparing.cancel()
            await asyncio.gather(self._comparing, return_exceptions=True)
        await self._templates.aclose()

    async def info(self) -> VocabularyInfo:
        """The edge's own."""
        if self._ours is None:
            size, pieces = self._engine.vocab_size, list[bytes]()
            while len(pieces) < size:
                part = range(len(pieces), min(size, len(pieces) + PIECES))
                pieces += [self._engine.piece(token, special=True) for token in part]
                await asyncio.sleep(0)  # others have their turn; a thread might outlive the engine
            self._ours = VocabularyInfo(fingerprint(pieces), size)
        return self._ours

    async def share(
        self, ids: list[int], *, text: str | None = None, messages: list[Message] | None = None
    ) -> SharedPrompt:
        """The prompt that the edge reads as `ids`, for both; raises RequestError if it was given as the edge's ids."""
        try:
            terms = await self._met()
        except EndpointError as error:
            return SharedPrompt(ids, ids, self._engine.piece, unmet=error.message)
        if terms.vocabulary is None:
            return self._same(ids, terms)
        if messages is not None:
            if terms.template is None:
                raise RequestError("the cloud's model has no chat template: ask /v1/completions", param="messages")
            text, begun = await terms.template.render(messages), True
        elif text is None:
            why = 'edge and cloud have different vocabularies: give text, or ask in mode "edge_only"'
            raise RequestError(f"token ids mean something only to one of them here, as {why}", param="prompt")
        else:
            begun = False
        cloud_ids = await asyncio.to_thread(terms.vocabulary.prompt, text, not begun)
        return self._translated(ids, cloud_ids, terms.vocabulary, terms.fingerprint)

    def _same(self, ids: list[int], terms: Terms) -> SharedPrompt:
        if terms.relation is Relation.IDENTICAL:
            return SharedPrompt(ids, ids, self._engine.piece, terms.fingerprint, forget=self._forget)
        known = self._engine.vocab_size
        return SharedPrompt(
            ids,
            ids,
            lambda token: self._engine.piece(token) if token < known else b"",
            terms.fingerprint,
            lambda drafter: PaddedDrafter(drafter, terms.shared),
            forget=self._forget,
        )

    def _translated(
        self, ids: list[int], cloud_ids: list[int], vocabulary: RemoteVocabulary, mark: str
    ) -> SharedPrompt:
        def drafter(edge: Drafter) -> Drafter:
            return TranslatingDrafter(edge, self._engine, vocabulary, ids, len(cloud_ids))

        return SharedPrompt(ids, cloud_ids, vocabulary.piece, mark, drafter, forget=self._forget)

    def _forget(self) -> None:
        """The cloud is another one than before."""
        self._terms = None

    async def _met(self) -> Terms:
        """Raises EndpointError if the cloud is not there, or nobody can tell what its ids mean."""
        if self._terms is not None:
            return self._terms
        comparing = self._comparison()
        await asyncio.wait([comparing], timeout=MEET_SECONDS)
        if not comparing.done():
            raise EndpointError(f"the cloud has not told its vocabulary within {MEET_SECONDS:g} s")
        return comparing.result()

    def _comparison(self) -> asyncio.Task[Terms]:
        """The comparison under way, or a new one."""
        if self._comparing is None or self._comparing.done():
            self._comparing = asyncio.create_task(self._compare())
            self._comparing.add_done_callback(lambda task: task.cancelled() or task.exception())  # may have no reader
        return self._comparing

    async def _compare(self) -> Terms:
        try:
            ours, theirs = await self.info(), await self._get("/tokenizer", VocabularyInfo)
            relation = compare(ours, theirs)
            terms = Terms(relation, theirs.fingerprint, min(ours.size, theirs.size))
            if relation is Relation.DIFFERENT:
                terms = await self._learned(await self._get("/tokenizer/file", TokenizerFile))
        except RequestError as error:
            raise VocabularyError(f"the cloud does not tell its vocabulary: {error.message}") from error
        self._terms = terms
        return terms

    async def _learned(self, file: TokenizerFile) -> Terms:
        vocabulary = await asyncio.to_thread(RemoteVocabulary, file)
        template = ChatTemplate(file.chat_template, bos=file.bos, eos=file.eos) if file.chat_template else None
        if template is not None:
            await self._templates.enter_async_context(template)
        return Terms(Relation.DIFFERENT, file.fingerprint, 0, vocabulary, template)
