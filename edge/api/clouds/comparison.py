"""Compares the vocabularies of edge and cloud: which token ids both have, and how each reads texts and chats."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from common.errors import RequestError, VocabularyError
from common.protocol.vocabulary import (
    Relation,
    RemoteVocabulary,
    TokenizerFile,
    VocabularyInfo,
    compare,
    normalized,
    reading_of,
)
from edge.engine.own_vocabulary import OwnVocabulary
from edge.engine.text_model import TextModel
from edge.text import chat_forms
from edge.text.chat_template import ChatTemplate

log = logging.getLogger(__name__)

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


class VocabularyComparison:
    """Of the edge's model with the cloud that `get` asks. Owns the cloud's chat templates, until it is closed."""

    def __init__(self, engine: TextModel, own: OwnVocabulary, get: Get, template: ChatTemplate | None) -> None:
        self._engine, self._own = engine, own
        self._get = get
        self._template = template
        self._templates = AsyncExitStack()

    async def close(self) -> None:
        await self._templates.aclose()

    async def compared(self) -> VocabularyMatch:
        """Raises EndpointError for a cloud that cannot be reached, or does not give its vocabulary."""
        try:
            ours, theirs = await self._own.info(), await self._get("/tokenizer", VocabularyInfo)
            relation = compare(ours, theirs)
            shared, length = min(ours.size, theirs.size), theirs.context_length
            match = VocabularyMatch(relation, theirs.fingerprint, shared, context_length=length, model=theirs.model)
            if relation is not Relation.DIFFERENT:
                match = replace(match, reader=await self._reader(theirs))
            else:
                match = await self._download(await self._get("/tokenizer/file", TokenizerFile), theirs)
        except RequestError as error:
            raise VocabularyError(f"the cloud does not give its vocabulary: {error.message}") from error
        one_vocabulary = relation is not Relation.DIFFERENT
        if not one_vocabulary:
            log.info("edge and cloud have different vocabularies: drafts are translated, and few may be accepted")
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
