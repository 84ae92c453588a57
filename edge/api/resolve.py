"""Resolves a /v1 request once: from the parsed body to one frozen value that every later stage takes."""

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.errors import NotFoundError, RequestError
from common.protocol.openai import ChatRequest, CompletionRequest, GenerationRequest
from common.types import Mode, Sampling
from edge.api import prompts
from edge.api.context import ServedModel, ServerContext
from edge.api.shared_prompt import SharedPrompt
from edge.engine.text_model import TextModel

T = TypeVar("T")


@dataclass(frozen=True)
class ResolvedAnswer:
    """One of a response's answers: its prompt, and what is decoded after it, with a seed of its own."""

    prompt: SharedPrompt
    decoding: DecodingRequest


@dataclass(frozen=True)
class ResolvedRequest:
    """All that one request asks for. `answers`: `choices` for each prompt, in the order of the prompts."""

    engine: TextModel
    """The model that writes the answers."""
    answers: tuple[ResolvedAnswer, ...]
    choices: int
    stop: tuple[str, ...]
    top_logprobs: int | None
    """The number of alternatives at each position; None: no log probabilities."""
    reuse_kv: bool
    chat: bool
    echo: bool
    stream: bool
    include_usage: bool
    token_sources: bool
    """Whether each token is reported with its source and confidence."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(answer.decoding.prompt) for answer in self.answers[:: self.choices])


@dataclass(frozen=True)
class _ResolvedPrompt:
    shared: SharedPrompt
    plan: Plan
    room: int
    """Tokens that the answer may have."""


async def resolve(body: GenerationRequest, context: ServerContext) -> ResolvedRequest:
    """What `body` asks of this server.

    Raises RequestError that names the first wrong field: unsupported ones, mode, prompt, model, sampling, stop.
    """
    body.refuse_unsupported()
    model = context.model(body.mode)
    resolved = [await _resolve_prompt(body, *each, model, context) for each in await _tokenized(body, model)]
    check_model(body.model, model.engine)
    options = body.stream_options
    return ResolvedRequest(
        engine=model.engine,
        answers=tuple(answer for prompt in resolved for answer in _answers(body, prompt)),
        choices=body.choices,
        stop=tuple(body.stop_strings),
        top_logprobs=body.wanted_logprobs,
        reuse_kv=_reuses_kv(body, context),
        chat=isinstance(body, ChatRequest),
        echo=isinstance(body, CompletionRequest) and bool(body.echo),
        stream=bool(body.stream),
        include_usage=options is not None and options.include_usage,
        token_sources=body.collaboration is not None and body.collaboration.tokens,
    )


def check_model(name: str, engine: TextModel) -> None:
    """Raises NotFoundError unless `engine` has this name, or the name is empty."""
    if name not in ("", engine.model_name):
        raise NotFoundError(f"no model {name!r} here; in this mode it is {engine.model_name!r}", param="model")


async def _tokenized(body: GenerationRequest, model: ServedModel) -> list[tuple[list[int], str | None]]:
    """Each prompt's token ids, and its text if it was given as one."""
    if isinstance(body, ChatRequest):
        ids = await prompts.of_chat(model, body.messages)
        prompts.room_after(len(ids), model.context_length, param="messages")
        return [(ids, None)]
    assert isinstance(body, CompletionRequest)
    given = await prompts.of_completion(model, body)
    texts = [prompt if isinstance(prompt, str) else None for prompt in body.prompts]
    return list(zip(given, texts, strict=True))


async def _resolve_prompt(
    body: GenerationRequest, ids: list[int], text: str | None, model: ServedModel, context: ServerContext
) -> _ResolvedPrompt:
    """The plan for a prompt, the prompt in the token ids of the models that take part, and the room for its answer."""
    param = "messages" if isinstance(body, ChatRequest) else "prompt"
    private = context.private is not None and await context.private.match(model.engine.detokenize(ids, special=True))
    plan = _plan(body, context, private)
    if plan.mode is Mode.SPLIT or not plan.asks_cloud:
        room = prompts.room_after(len(ids), model.engine.context_length, param)
        return _ResolvedPrompt(SharedPrompt(ids, ids, model.engine.piece), plan, room)
    if isinstance(body, ChatRequest):
        shared = await context.vocabulary.share(ids, messages=body.messages)
    else:
        shared = await context.vocabulary.share(ids, text=text)
    return _ResolvedPrompt(shared, plan, _room_with_cloud(shared, plan, context, param))


def _room_with_cloud(shared: SharedPrompt, plan: Plan, context: ServerContext, param: str) -> int:
    """The room in the cloud's context: the edge, if its own is full, gives no drafts, and the cloud goes on.

    In the edge's where the edge will answer alone: the cloud's is not known, or too short for the prompt. `cloud_only`
    has no answer to a prompt that is too long for the cloud.
    """
    length = None if shared.context_length is None else context.allowed(shared.context_length)
    if length is not None and (len(shared.ids) < length or plan.mode is Mode.CLOUD_ONLY):
        return prompts.room_after(len(shared.ids), length, param)
    return prompts.room_after(len(shared.edge_ids), context.engine.context_length, param)


def _plan(body: GenerationRequest, context: ServerContext, private: bool) -> Plan:
    if body.mode is not Mode.SPLIT:
        return plan_of(body, context.plan, private)
    use_exits = _given(body.use_confidence_check, context.plan.use_confidence_check)
    standalone = private or body.privacy is not None
    return context.split_engine.plan(body.confidence_threshold, use_exits, standalone)


def plan_of(body: GenerationRequest, default: Plan, private: bool = False) -> Plan:
    """The `default` plan with what this request sets; not for mode split.

    The edge alone answers a `private` prompt, and a request that asks for privacy, whatever else is set. Raises
    RequestError for a field that only the edge alone supports, if the cloud would take part.
    """
    gate = default.gate
    if body.confidence_threshold is not None:
        gate = dataclasses.replace(gate, threshold=body.confidence_threshold)
    if body.product_threshold is not None:
        gate = dataclasses.replace(gate, product_threshold=body.product_threshold)
    plan = dataclasses.replace(
        default,
        mode=Mode.EDGE_ONLY if private or body.privacy else body.mode,
        gate=gate,
        use_confidence_check=_given(body.use_confidence_check, default.use_confidence_check),
        use_draft_verify=_given(body.use_draft_verify, default.use_draft_verify),
        max_draft_tokens=_given(body.max_draft_tokens, default.max_draft_tokens),
        objective=_given(body.objective, default.objective),
        verification_mode=_given(body.way, default.verification_mode),
        draft_ahead=_given(body.draft_ahead, default.draft_ahead),
    )
    name = body.edge_only_field
    if name and plan.asks_cloud:
        raise RequestError(f'{name} is supported where the edge answers alone: ask in mode "edge_only"', param=name)
    return plan


def _answers(body: GenerationRequest, prompt: _ResolvedPrompt) -> list[ResolvedAnswer]:
    """The choices for one prompt."""
    shared, max_tokens = prompt.shared, _max_tokens(body)
    limit = prompt.room if max_tokens is None else min(max_tokens, prompt.room)
    sampling = body.sampling(len(shared.ids))
    return [
        ResolvedAnswer(shared, DecodingRequest(shared.ids, limit, _of_choice(sampling, choice), prompt.plan))
        for choice in range(body.choices)
    ]


def _max_tokens(body: GenerationRequest) -> int | None:
    if isinstance(body, ChatRequest):
        return body.max_completion_tokens or body.max_tokens
    assert isinstance(body, CompletionRequest)
    return body.max_tokens


def _of_choice(sampling: Sampling, choice: int) -> Sampling:
    """Each choice draws its own tokens, reproducibly."""
    if sampling.seed is None or choice == 0:
        return sampling
    return msgspec.structs.replace(sampling, seed=sampling.seed + choice)


def _reuses_kv(body: GenerationRequest, context: ServerContext) -> bool:
    """Whether KV is reused between requests (F3)."""
    wanted = _given(body.use_kv_cache, context.config.inference.features.use_kv_cache)
    return wanted and context.config.edge.kv_cache.enabled


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
