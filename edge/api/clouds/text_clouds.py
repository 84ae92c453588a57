"""What the edge knows of clouds with OpenAI's API: their models, and how each goes on with an answer."""

import asyncio
import logging
from dataclasses import replace
from types import TracebackType
from typing import Self

from common.cloud_client.openai_servers import ServerInfo, ask_server
from common.cloud_client.openai_verifier import OpenAIVerifier, TextPrompt
from common.cloud_client.pool import Cloud, CloudPool
from common.decoding.policy import Handover
from common.enums import ContinuationForm
from common.errors import EndpointError, RequestError
from common.protocol.vocabulary import VocabularyInfo
from edge.api.clouds.shared_prompt import SharedPrompt
from edge.engine.own_vocabulary import OwnVocabulary
from edge.engine.text_model import TextModel
from edge.text import chat_forms
from edge.text.chat_template import ChatTemplate
from edge.text.conversation import Conversation, WrittenPrompt

log = logging.getLogger(__name__)

TOOLS = "with tools, this cloud cannot go on with what the edge writes"


class TextClouds:
    """The answer's tokens are the edge's; such a cloud reads and writes text.

    Asks each cloud once, the first at the start, and again after it has failed. Owns that task: `async with`.
    """

    handover: Handover | None = Handover.REST

    def __init__(self, engine: TextModel, clouds: CloudPool, template: ChatTemplate) -> None:
        self._engine = engine
        self._own = OwnVocabulary(engine)
        self._clouds = clouds
        self._template = template
        self._known: dict[Cloud, ServerInfo] = {}
        self._latest: ServerInfo | None = None
        self._starting: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Self:
        self._starting = asyncio.create_task(self._first())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)

    async def info(self) -> VocabularyInfo:
        """Fingerprint and size of the edge's vocabulary."""
        return await self._own.info()

    async def told(self) -> None:
        """Asks a cloud that has not answered yet; raises EndpointError where there is none."""
        await self._usable()

    @property
    def context_length(self) -> int | None:
        """Tokens of the cloud's context; None until it has told."""
        return self._latest.context_length if self._latest else None

    @property
    def cloud_model(self) -> str:
        """The name of the cloud's model; empty until it has told."""
        return self._latest.model if self._latest else ""

    async def share(
        self,
        ids: list[int],
        *,
        text: str | None = None,
        conversation: Conversation | None = None,
        written: WrittenPrompt | None = None,
    ) -> SharedPrompt:
        """The prompt for both: its `ids` for the edge, and what a cloud is asked to continue."""
        alone = SharedPrompt(ids, ids, self._engine.piece, written=written, encode_marks=self._own.encode_marks)
        try:
            info = await self._usable()
        except EndpointError as error:
            return replace(alone, unknown_because=error.message)
        whole = conversation is not None and info.continuation is ContinuationForm.NONE
        if conversation is not None and conversation.tools and info.continuation is not ContinuationForm.TEXT:
            return replace(alone, unknown_because=TOOLS)
        prompt = self._prompt(ids, text, conversation, written)
        return replace(
            alone,
            context_length=info.context_length,
            encode=self._own.encode,
            end_tokens=self._engine.end_tokens,
            generator=lambda: OpenAIVerifier(self._clouds, self.server, prompt, info.context_length),
            handover=Handover.WHOLE if whole else Handover.REST,
        )

    def _prompt(
        self, ids: list[int], text: str | None, conversation: Conversation | None, written: WrittenPrompt | None
    ) -> TextPrompt:
        engine = self._engine
        if written is not None:
            text = written.text
        elif text is None:  # ids, which begin as the server begins a text
            text = engine.detokenize(ids, special=True).removeprefix(engine.bos)
        turns = conversation.turns() if conversation is not None else None
        return TextPrompt(text, turns, engine.bos, len(ids), self._own.encode, engine.piece)

    async def _first(self) -> None:
        try:
            await self._usable()
        except EndpointError as error:
            log.info("the cloud has not told its model yet: %s", error.message)

    async def _usable(self) -> ServerInfo:
        """Of a cloud that can be used now; raises EndpointError where there is none."""
        failed = list[Cloud]()
        while True:
            cloud = self._clouds.pick((), excluding=failed)
            try:
                return await self.server(cloud)
            except EndpointError:
                failed.append(cloud)

    async def server(self, cloud: Cloud) -> ServerInfo:
        """What the server of `cloud` has told; raises EndpointError where it has to be asked and does not answer."""
        if (known := self._known.get(cloud)) is not None and not cloud.last_error:
            return known
        with self._clouds.track_call(cloud):
            ours = await self._greeting()
            info = await ask_server(cloud, lambda text: text.removeprefix(self._engine.bos) == ours)
        if info != known:
            form = {"model": info.model, "context": info.context_length, "continuation": info.continuation.value}
            log.info("%s verifies no drafts, it takes over answers: %s", cloud.url, form)
        cloud.last_error = ""
        self._known[cloud] = self._latest = info
        return info

    async def _greeting(self) -> str:
        """How the edge writes the conversation that is compared; empty without a template, or if it refuses it."""
        if not self._engine.chat_template:
            return ""
        try:
            return (await self._template.render(chat_forms.CONVERSATION)).removeprefix(self._engine.bos)
        except RequestError:
            return ""
