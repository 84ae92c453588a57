"""Gives each prompt in the token ids of edge and cloud, whose vocabularies it has compared once."""

import asyncio
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from common.decoding.drafters.vocab_translation import PaddedDrafter, TranslatingDrafter
from common.decoding.interfaces import Drafter
from common.decoding.policy import Handover
from common.errors import EndpointError, RequestError
from common.protocol.vocabulary import Relation, RemoteVocabulary, VocabularyInfo
from edge.api.clouds.comparison import Get, VocabularyComparison, VocabularyMatch
from edge.api.clouds.shared_prompt import SharedPrompt
from edge.engine.own_vocabulary import OwnVocabulary
from edge.engine.text_model import TextModel
from edge.text.chat_template import ChatTemplate
from edge.text.conversation import Conversation, WrittenPrompt

COMPARE_SECONDS = 5.0
"""How long a request waits for a cloud that it has not yet been compared with."""


class CloudVocabulary:
    """Compares at the start; if that fails, with the next request. Until it succeeds the cloud is sent no token ids.

    Owns the running comparison and the cloud's chat templates: `async with`. `get` asks the cloud; `template` is the
    edge's, with which the cloud's is compared.
    """

    handover: Handover | None = None

    def __init__(self, engine: TextModel, get: Get, template: ChatTemplate | None = None) -> None:
        self._engine = engine
        self._match: VocabularyMatch | None = None
        self._comparing: asyncio.Task[VocabularyMatch] | None = None
        self._own = OwnVocabulary(engine)
        self._vocabularies = VocabularyComparison(engine, self._own, get, template)

    async def __aenter__(self) -> Self:
        self._comparison()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._comparing is not None:
            self._comparing.cancel()
            await asyncio.gather(self._comparing, return_exceptions=True)
        await self._vocabularies.close()

    async def info(self) -> VocabularyInfo:
        """Fingerprint and size of the edge's vocabulary."""
        return await self._own.info()

    async def told(self) -> None:
        """Waits for the comparison; raises EndpointError if the cloud cannot be reached or does not end it."""
        await self._result()

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
        self._match = await self._vocabularies.compared()
        return self._match
