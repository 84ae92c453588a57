"""One prompt of a request: its tokens for the models that take part, its plan, and the room for its answer."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec

from common.decoding.policy import Plan
from common.errors import ContextLengthError, EndpointError, RequestError
from common.protocol.content.openai_content import without_media
from common.protocol.openai import ChatRequest, CompletionRequest, GenerationRequest
from common.protocol.openai_tools import Toolset
from common.types import Mode
from edge.api import prompts
from edge.api.clouds.shared_prompt import SharedPrompt
from edge.api.context import ServedModel, ServerContext
from edge.api.plans import given, is_private, plan_for, with_router
from edge.api.without_model import NO_MODEL
from edge.engine.text_model import TextModel
from edge.privacy.redaction import Secrets
from edge.text.conversation import Conversation, WrittenPrompt

Read = TypeVar("Read")


@dataclass(frozen=True)
class PlannedPrompt:
    """`lookup`: whether drafts are also looked up; `prediction`: the ids of the text that is expected, for that."""

    shared: SharedPrompt
    plan: Plan
    room: int
    """Tokens that the answer may have."""
    lookup: bool = False
    prediction: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReadPrompt:
    """Its ids in the edge's vocabulary, and what they are made of: text, or a conversation."""

    ids: list[int]
    text: str | None = None
    conversation: Conversation | None = None
    written: WrittenPrompt | None = None

    def asked(self, engine: TextModel) -> str:
        """What the user wrote last, or all of a text that is to be continued."""
        if self.conversation is None:
            return engine.detokenize(self.ids) if self.text is None else self.text
        return next((one.text for one in reversed(self.conversation.messages) if one.role == "user"), "")


async def with_longest_context(
    mode: Mode, context: ServerContext, read: Callable[[ServedModel], Awaitable[Read]]
) -> Read:
    """What `read` makes with the model of this mode: too long for the edge, once a cloud has told its context.

    Raises ContextLengthError also where none does.
    """
    try:
        return await read(context.model(mode))
    except ContextLengthError as error:
        if mode in (Mode.EDGE_ONLY, Mode.SPLIT) or context.vocabulary.context_length is not None:
            raise
        try:
            await context.vocabulary.told()
        except EndpointError as lost:
            message = f"{error.message}, and no cloud has told a longer one: {lost.message}"
            raise ContextLengthError(message, param=error.param) from lost
        return await read(context.model(mode))


async def read_prompts(body: GenerationRequest, model: ServedModel, tools: Toolset) -> list[ReadPrompt]:
    """The prompts as the edge's model reads them; RequestError for what it cannot read, or is too long."""
    if isinstance(body, ChatRequest):
        messages = body.messages
        if body.cloud_only_part is not None:  # the cloud writes the prompt; this one tells how its answer is read
            messages = [msgspec.structs.replace(one, content=without_media(one.content)) for one in messages]
        conversation = Conversation(messages, tools.tools, body.template_variables)
        ids, written = await prompts.of_chat(model, conversation)
        prompts.room_after(len(ids), model.context_length, param="messages")
        return [ReadPrompt(ids, conversation=conversation, written=written)]
    assert isinstance(body, CompletionRequest)
    given = await prompts.of_completion(model, body)
    texts = [prompt if isinstance(prompt, str) and not body.suffix else None for prompt in body.prompts]
    return [ReadPrompt(*each) for each in zip(given, texts, strict=True)]


async def planned(
    body: GenerationRequest, prompt: ReadPrompt, model: ServedModel, context: ServerContext, secrets: Secrets
) -> PlannedPrompt:
    """The plan for a prompt, the prompt in the token ids of the models that take part, and the room for its answer."""
    param, ids = "messages" if prompt.conversation else "prompt", prompt.ids
    private = await is_private(body, ids, model, context, secrets)
    plan = context.costs.within_budget(plan_for(body, context, private), only_cloud=body.cloud_only_part is not None)
    if not context.engine.computes and plan.mode is not Mode.SPLIT and not plan.lossless:
        raise RequestError(NO_MODEL, param="mode")
    if plan.mode is Mode.SPLIT or not plan.asks_cloud:
        return _of_edge_alone(prompt, plan, model, param)
    try:
        shared = await context.vocabulary.share(
            ids, text=prompt.text, conversation=prompt.conversation, written=prompt.written
        )
    except RequestError as error:  # token ids, of which the cloud has others
        if body.mode not in (None, Mode.ROUTE) or not context.engine.computes:
            raise
        plan = replace(plan, mode=Mode.EDGE_ONLY, mode_because=error.message.partition(":")[0])
        return _of_edge_alone(prompt, plan, model, param)
    plan = replace(plan, handover=shared.handover)
    if plan.mode is Mode.ROUTE:
        plan = with_router(plan, body, prompt.asked(model.engine), shared, context)
        if not plan.asks_cloud:
            return _of_edge_alone(prompt, plan, model, param)
    lookup = (
        plan.mode is Mode.COLLABORATIVE
        and plan.use_draft_verify
        and given(body.lookup, context.config.inference.lookup)
    )
    prediction = await _prediction(body, shared) if lookup else ()
    return PlannedPrompt(shared, plan, _room_with_cloud(shared, plan, context, param), lookup, prediction)


def _of_edge_alone(prompt: ReadPrompt, plan: Plan, model: ServedModel, param: str) -> PlannedPrompt:
    """A prompt that no cloud reads as tokens, in the edge's ids."""
    room = prompts.room_after(len(prompt.ids), model.engine.context_length, param)
    marks = partial(model.engine.tokenize, add_special=False, parse_special=True)
    alone = SharedPrompt(prompt.ids, prompt.ids, model.engine.piece, written=prompt.written, encode_marks=marks)
    return PlannedPrompt(alone, plan, room)


async def _prediction(body: GenerationRequest, shared: SharedPrompt) -> tuple[int, ...]:
    """The ids of the answer that the request expects."""
    if not isinstance(body, ChatRequest) or body.prediction is None:
        return ()
    return tuple(await asyncio.to_thread(shared.encode, body.prediction.text))


def _room_with_cloud(shared: SharedPrompt, plan: Plan, context: ServerContext, param: str) -> int:
    """The room in the cloud's context: the edge, if its own is full, gives no drafts, and the cloud goes on.

    In the edge's where the edge will answer alone: the cloud's is not known, or too short for the prompt. `cloud_only`
    has no answer to a prompt that is too long for the cloud.
    """
    length = None if shared.context_length is None else context.allowed(shared.context_length)
    if length is not None and (len(shared.ids) < length or plan.mode is Mode.CLOUD_ONLY):
        return prompts.room_after(len(shared.ids), length, param)
    return prompts.room_after(len(shared.edge_ids), context.engine.context_length, param)
