"""Compares the vocabularies of edge and cloud once, and gives each prompt in the token ids of both."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVar

from common.decoding.drafters.vocab_translation import PaddedDrafter, TranslatingDrafter
from common.decoding.interfaces import Drafter
from common.decoding.policy import Handover
from common.errors import EndpointError, RequestError, VocabularyError
from common.protocol.vocabulary import (
    Relation,
    RemoteVocabulary,
    TokenizerFile,
    VocabularyInfo,
    compare,
    normalized,
    reading_of,
)
from edge.api.shared_prompt import SharedPrompt
from edge.engine.own_vocabulary import OwnVocabulary
from edge.engine.text_model import TextModel
from edge.text import chat_forms
from edge.text.chat_template import ChatTemplate
from edge.text.conversation import Conversation, WrittenPrompt

log = logging.getLogger(__name__)

COMPARE_SECONDS = 5.0
"""How long a request waits for a cloud that it has not yet been compared with."""
T = TypeVar("T", covariant=True)


class Get(Protocol):
    """A GET from the cloud; raises EndpointError or RequestError."""

    async def __call__(self, path: str, type_: type[T], /) -> T: ...


Reader = Callable[[str, bool], list[int]]
"""From a prompt, and whether the tokens that begin one are added, to token ids."""


@dataclass(frozen=True)
class VocabularyMatch:
    """The result of a comparison; `vocabulary` and `template` are the cloud's, set if the two vocabularies differ."""

    relation: Relation
    fingerprint: str
    shared: int
    """Token ids below this are in both."""
    context_length: int | None = None
    """Tokens of the cloud's context."""
    model: str = ""
    """The name of the cloud's model."""
    vocabulary: RemoteVocabulary | None = None
    template: ChatTemplate | None = None
    reader: Reader | None = None
    """With one vocabulary: what gives the cloud's ids of a text, if its tokenizer reads texts otherwise."""


class CloudVocabulary:
    """Compares at the start; if that fails, with the next request. Until it succeeds the cloud is sent no token ids.

    Owns the running comparison and the cloud's chat templates: `async with`. `get` asks the cloud; `template` is the
    edge's, with which the cloud's is compared.
    """

    handover: Handover | None = None

    def __init__(self, engine: TextModel, get: Get, template: ChatTemplate | None = None) -> None:
        self._engine = engine
        self._get = get
        self._template = template
        self._match: VocabularyMatch | None = None
        self._comparing: asyncio.Task[VocabularyMatch] | None = None
        self._own = OwnVocabulary(engine)
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
        """Fingerprint and size of the edge's vocabulary."""
        return await self._own.info()

    async def share(
        self,
        ids: list[int],
        *,
        text: str | None = None,
        conversation: Conversation | None = None,
        written: WrittenPrompt | None = None,
    ) -> SharedPrompt:
        """The prompt, `ids` to the edge, in the token ids of both.

        They are those that the cloud's own tokenizer gives, if the edge's gives others. `written`: the conversation as
        the edge's model writes it; a cloud with another vocabulary and no chat template reads that.
        Raises RequestError if the vocabularies differ and neither `text` nor `conversation` is given.
        """
        try:
            match = await self._result()
        except EndpointError as error:
            lost = SharedPrompt(ids, ids, self._engine.piece, written=written, encode_marks=self._own.encode_marks)
            return replace(lost, unknown_because=error.message)
        if match.vocabulary is None:
            if match.reader is not None and (text is not None or conversation is not None):
                read = self._engine.detokenize(ids, special=True) if text is None else text
                ids = await asyncio.to_thread(match.reader, read, text is not None)
            return replace(self._same(ids, match), written=written)
        if conversation is not None and match.template is not None:
            written, add_special = await match.template.prompt(conversation), False
            text = written.text
        elif conversation is not None:
            text, add_special = self._engine.detokenize(ids, special=True), True
        elif text is None:
            hint = 'give text, or ask in mode "edge_only"'
            raise RequestError(
                f"edge and cloud have different vocabularies, so token ids cannot be shared: {hint}", "prompt"
            )
        else:
            add_special = True
        cloud_ids = await asyncio.to_thread(match.vocabulary.prompt, text, add_special)
        shared = self._translated(ids, cloud_ids, match.vocabulary, match)
        return replace(shared, written=written)

    def _same(self, ids: list[int], match: VocabularyMatch) -> SharedPrompt:
        shared = SharedPrompt(
            ids,
            ids,
            self._engine.piece,
            match.fingerprint,
            match.context_length,
            encode=self._own.encode,
            encode_marks=self._own.encode_marks,
            end_tokens=self._engine.end_tokens,
            forget=self._forget,
        )
        if match.relation is Relation.IDENTICAL:
            return shared
        size = self._engine.vocab_size
        return replace(
            shared,
            piece=lambda token, special=False: self._engine.piece(token, special) if token < size else b"",
            drafter=lambda drafter: PaddedDrafter(drafter, match.shared),
        )

    def _translated(
        self, ids: list[int], cloud_ids: list[int], vocabulary: RemoteVocabulary, match: VocabularyMatch
    ) -> SharedPrompt:
        def drafter(edge: Drafter) -> Drafter:
            return TranslatingDrafter(edge, self._engine, vocabulary, ids, len(cloud_ids))

        return SharedPrompt(
            ids,
            cloud_ids,
            vocabulary.piece,
            match.fingerprint,
            match.context_length,
            drafter,
            encode=lambda text: [token for token, _ in vocabulary.tokens(text)],
            encode_marks=partial(vocabulary.prompt, add_special=False),
            end_tokens=vocabulary.end_tokens,
            forget=self._forget,
        )

    @property
    def context_length(self) -> int | None:
        """Tokens of the cloud's context; None until it has told."""
        return self._match.context_length if self._match else None

    @property
    def cloud_model(self) -> str:
        """The name of the cloud's model; empty until it has told."""
        return self._match.model if self._match else ""

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
            shared, length = min(ours.size, theirs.size), theirs.context_length
            match = VocabularyMatch(relation, theirs.fingerprint, shared, context_length=length, model=theirs.model)
            if relation is not Relation.DIFFERENT:
                match = replace(match, reader=await self._reader(theirs))
            else:
                match = await self._download(await self._get("/tokenizer/file", TokenizerFile), theirs)
        except RequestError as error:
            raise VocabularyError(f"the cloud does not give its vocabulary: {error.message}") from error
        self._match = match
        one_vocabulary = relation is not Relation.DIFFERENT
        if problem := chat_forms.mismatch(await self._greeting(), theirs.greeting, one_vocabulary):
            log.warning("%s", problem)
        return match

    async def _reader(self, theirs: VocabularyInfo) -> Reader | None:
        """How the cloud reads a text: as the edge (None), after bringing it into a Unicode form, or in its own way."""

        def read(text: str, add_special: bool = False) -> list[int]:
            return self._engine.tokenize(normalized(text, theirs.normalizer), add_special, parse_special=True)

        def plain(text: str) -> list[int]:
            return self._engine.tokenize(text, add_special=False)

        if not theirs.reading or reading_of(plain) == theirs.reading:
            return None
        if reading_of(plain, theirs.normalizer) == theirs.reading:
            return read
        log.warning("the cloud's tokenizer reads texts otherwise than the edge's: it reads the prompts for both")
        file = await self._get("/tokenizer/file", TokenizerFile)
        return (await asyncio.to_thread(RemoteVocabulary, file)).prompt

    async def _greeting(self) -> list[int] | None:
        """The edge's prompt for the conversation that is compared; empty without a template, None if it refuses it."""
        if not self._engine.chat_template:
            return []
        with contextlib.suppress(RequestError):
            text = await self._template.render(chat_forms.CONVERSATION) if self._template else ""
            return self._engine.tokenize(text, add_special=False, parse_special=True) if text else None
        return None

    async def _download(self, file: TokenizerFile, info: VocabularyInfo) -> VocabularyMatch:
        vocabulary = await asyncio.to_thread(RemoteVocabulary, file)
        template = ChatTemplate(file.chat_template, bos=file.bos, eos=file.eos) if file.chat_template else None
        if template is not None:
            await self._templates.enter_async_context(template)
        return VocabularyMatch(
            Relation.DIFFERENT, file.fingerprint, 0, info.context_length, info.model, vocabulary, template
        )
