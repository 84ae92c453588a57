"""Compares the vocabularies of edge and cloud once, and gives each prompt in the token ids of both."""

import asyncio
import contextlib
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar

from common.decoding.interfaces import Drafter
from common.decoding.vocab_translation import PaddedDrafter, TranslatingDrafter
from common.errors import EndpointError, RequestError, VocabularyError
from common.protocol.openai import Message
from common.protocol.vocabulary import Relation, RemoteVocabulary, TokenizerFile, VocabularyInfo, compare, fingerprint
from edge.api import chat_forms
from edge.api.shared_prompt import SharedPrompt
from edge.engine.engine import EdgeEngine
from edge.text.chat_template import ChatTemplate

log = logging.getLogger(__name__)

COMPARE_SECONDS = 5.0
"""How long a request waits for a cloud that it has not yet been compared with."""
PIECES = 4096
"""Tokens that are converted to bytes without a pause: some milliseconds."""
T = TypeVar("T", covariant=True)


class Get(Protocol):
    """A GET from the cloud; raises EndpointError or RequestError."""

    async def __call__(self, path: str, type_: type[T], /) -> T: ...


@dataclass(frozen=True)
class VocabularyMatch:
    """The result of a comparison; `vocabulary` and `template` are the cloud's, set if the two vocabularies differ."""

    relation: Relation
    fingerprint: str
    shared: int
    """Token ids below this are in both."""
    vocabulary: RemoteVocabulary | None = None
    template: ChatTemplate | None = None


class CloudVocabulary:
    """Compares at the start; if that fails, with the next request. Until it succeeds the cloud is sent no token ids.

    Owns the running comparison and the cloud's chat templates: `async with`. `get` asks the cloud; `template` is the
    edge's, with which the cloud's is compared.
    """

    def __init__(self, engine: EdgeEngine, get: Get, template: ChatTemplate | None = None) -> None:
        self._engine = engine
        self._get = get
        self._template = template
        self._match: VocabularyMatch | None = None
        self._comparing: asyncio.Task[VocabularyMatch] | None = None
        self._ours: VocabularyInfo | None = None
        self._computing = asyncio.Lock()
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
        """Fingerprint and size of the edge's vocabulary; computing them takes about a second for a large one."""
        async with self._computing:
            return await self._info()

    async def _info(self) -> VocabularyInfo:
        if self._ours is None:
            size, pieces = self._engine.vocab_size, list[bytes]()
            while len(pieces) < size:
                part = range(len(pieces), min(size, len(pieces) + PIECES))
                pieces += [self._engine.piece(token, special=True) for token in part]
                await asyncio.sleep(0)  # lets other tasks run; a thread might outlive the engine
            self._ours = VocabularyInfo(fingerprint(pieces), size)
        return self._ours

    async def share(
        self, ids: list[int], *, text: str | None = None, messages: list[Message] | None = None
    ) -> SharedPrompt:
        """The prompt, `ids` to the edge, in the token ids of both.

        A cloud with another vocabulary and no chat template reads a conversation as the edge's model writes it.
        Raises RequestError if the vocabularies differ and neither `text` nor `messages` is given.
        """
        try:
            match = await self._result()
        except EndpointError as error:
            return SharedPrompt(ids, ids, self._engine.piece, unknown_because=error.message)
        if match.vocabulary is None:
            return self._same(ids, match)
        if messages is not None and match.template is not None:
            text, add_special = await match.template.render(messages), False
        elif messages is not None:
            text, add_special = self._engine.detokenize(ids, special=True), True
        elif text is None:
            hint = 'give text, or ask in mode "edge_only"'
            raise RequestError(
                f"edge and cloud have different vocabularies, so token ids cannot be shared: {hint}", "prompt"
            )
        else:
            add_special = True
        cloud_ids = await asyncio.to_thread(match.vocabulary.prompt, text, add_special)
        return self._translated(ids, cloud_ids, match.vocabulary, match.fingerprint)

    def _same(self, ids: list[int], match: VocabularyMatch) -> SharedPrompt:
        if match.relation is Relation.IDENTICAL:
            return SharedPrompt(ids, ids, self._engine.piece, match.fingerprint, forget=self._forget)
        size = self._engine.vocab_size
        return SharedPrompt(
            ids,
            ids,
            lambda token: self._engine.piece(token) if token < size else b"",
            match.fingerprint,
            lambda drafter: PaddedDrafter(drafter, match.shared),
            forget=self._forget,
        )

    def _translated(
        self, ids: list[int], cloud_ids: list[int], vocabulary: RemoteVocabulary, cloud_fingerprint: str
    ) -> SharedPrompt:
        def drafter(edge: Drafter) -> Drafter:
            return TranslatingDrafter(edge, self._engine, vocabulary, ids, len(cloud_ids))

        return SharedPrompt(ids, cloud_ids, vocabulary.piece, cloud_fingerprint, drafter, forget=self._forget)

    def _forget(self) -> None:
        """The cloud has changed its vocabulary: the next request compares again."""
        self._match = None

    async def _result(self) -> VocabularyMatch:
        """Raises EndpointError if the cloud cannot be reached or does not give its vocabulary."""
        if self._match is not None:
            return self._match
        comparing = self._comparison()
        await self.info()
        await asyncio.wait([comparing], timeout=COMPARE_SECONDS)
        if not comparing.done():
            raise EndpointError(f"the cloud has not sent its vocabulary within {COMPARE_SECONDS:g} s")
        return comparing.result()

    def _comparison(self) -> asyncio.Task[VocabularyMatch]:
        """The running comparison, or a new one."""
        if self._comparing is None or self._comparing.done():
            self._comparing = asyncio.create_task(self._compare())
            self._comparing.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may await it
        return self._comparing

    async def _compare(self) -> VocabularyMatch:
        try:
            ours, theirs = await self.info(), await self._get("/tokenizer", VocabularyInfo)
            relation = compare(ours, theirs)
            match = VocabularyMatch(relation, theirs.fingerprint, min(ours.size, theirs.size))
            if relation is Relation.DIFFERENT:
                match = await self._download(await self._get("/tokenizer/file", TokenizerFile))
        except RequestError as error:
            raise VocabularyError(f"the cloud does not give its vocabulary: {error.message}") from error
        self._match = match
        one_vocabulary = relation is not Relation.DIFFERENT
        if problem := chat_forms.mismatch(await self._greeting(), theirs.greeting, one_vocabulary):
            log.warning("%s", problem)
        return match

    async def _greeting(self) -> list[int] | None:
        """The edge's prompt for the conversation that is compared; empty without a template, None if it refuses it."""
        if not self._engine.chat_template:
            return []
        with contextlib.suppress(RequestError):
            text = await self._template.render(chat_forms.CONVERSATION) if self._template else ""
            return self._engine.tokenize(text, add_special=False, parse_special=True) if text else None
        return None

    async def _download(self, file: TokenizerFile) -> VocabularyMatch:
        vocabulary = await asyncio.to_thread(RemoteVocabulary, file)
        template = ChatTemplate(file.chat_template, bos=file.bos, eos=file.eos) if file.chat_template else None
        if template is not None:
            await self._templates.enter_async_context(template)
        return VocabularyMatch(Relation.DIFFERENT, file.fingerprint, 0, vocabulary, template)
