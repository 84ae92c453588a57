"""An edge without a model of its own: it reads and writes the cloud's tokens, and only looks drafts up."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from typing import Self

from common.config_edge import LimitsConfig
from common.decoding.interfaces import LeasedDrafter
from common.errors import EndpointError, RequestError
from common.grammar.spec import GrammarSpec
from common.hardware import Setting
from common.protocol.openai_replies import ModelList
from common.protocol.vocabulary import RemoteVocabulary, TokenizerFile, VocabularyInfo
from common.types import NEVER, NO_DRAFT, Draft, Sampling, StopRule
from edge.api.clouds.comparison import Get
from edge.engine.edge_model import EdgeModel
from edge.engine.sequence import EdgeSequence

log = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds between two attempts to reach the cloud at the start."""
NO_MODEL = (
    'this edge has no model of its own (edge.model.path is empty): ask for a lossless answer ("use_confidence_check": '
    'false, with F2 on) or in mode "cloud_only"'
)


class CloudTokens:
    """The cloud's vocabulary in the form of a model file's: see `edge.llama.vocabulary.LlamaVocabulary`."""

    fill_in = None
    """Which of its tokens are for filling in, the cloud does not tell."""

    def __init__(self, file: TokenizerFile, size: int) -> None:
        self.size = size
        self.end_tokens = frozenset(file.end_tokens)
        self.bos, self.eos = file.bos, file.eos
        self._chat_template = file.chat_template
        self._remote = RemoteVocabulary(file)

    def meta(self, key: str) -> str | None:
        return self._chat_template or None if key == "tokenizer.chat_template" else None

    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        if parse_special:
            return self._remote.prompt(text.decode(), add_special)
        return [token for token, _ in self._remote.tokens(text.decode())]

    def piece(self, token_id: int, special: bool) -> bytes:
        return self._remote.piece(token_id, special)


class NoDrafter:
    """Drafts nothing."""

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        return NO_DRAFT

    async def release(self) -> None:
        pass


class EdgeWithoutModel(EdgeModel):
    """Stands in for the engine; `async with` waits until the cloud has told its vocabulary."""

    computes = False

    def __init__(self, get: Get, limits: LimitsConfig) -> None:
        self._get = get
        self._limits = limits
        self._vocabulary: CloudTokens | None = None
        self._name = ""
        self._context_length = 0

    async def __aenter__(self) -> Self:
        while self._vocabulary is None:
            try:
                await self._fetch()
            except EndpointError as error:
                log.info("waiting for the cloud's vocabulary: %s", error.message)
                await asyncio.sleep(PAUSE)
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    async def _fetch(self) -> None:
        info = await self._get("/tokenizer", VocabularyInfo)
        file = await self._get("/tokenizer/file", TokenizerFile)
        self._name = (await self._get("/v1/models", ModelList)).data[0].id
        self._context_length = info.context_length or 0
        self._vocabulary = await asyncio.to_thread(CloudTokens, file, info.size)

    @property
    def vocabulary(self) -> CloudTokens:
        assert self._vocabulary is not None, "it has started"
        return self._vocabulary

    @property
    def context_length(self) -> int:
        limit = self._limits.max_tokens_request
        return min(self._context_length, limit) if limit else self._context_length

    @property
    def model_name(self) -> str:
        return self._name

    @property
    def alive(self) -> bool:
        return True

    async def until_idle(self) -> None:
        pass

    def stats(self, tenant: str | None = None) -> dict[str, int]:
        return {}

    def settings(self) -> dict[str, Setting]:
        return {}

    async def check_grammar(self, spec: GrammarSpec) -> None:
        pass

    def sequence(
        self, token_ids: Sequence[int] = (), reuse: bool = True, admitted: bool = False
    ) -> AbstractAsyncContextManager[EdgeSequence]:
        raise RequestError(NO_MODEL, param="mode")

    @asynccontextmanager
    async def drafter(self, reuse: bool, admitted: bool, top_logprobs: int) -> AsyncIterator[LeasedDrafter]:
        yield NoDrafter()

    def admit(self, requests: int, tokens: int) -> AbstractContextManager[None]:
        return nullcontext()
