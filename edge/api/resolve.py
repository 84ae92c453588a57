"""Resolves a /v1 request once: from the parsed body to one frozen value that every later stage takes."""

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, field

import msgspec

from common.cloud_client.chat_stream import CloudChat
from common.decoding.request import DecodingRequest
from common.errors import GrammarError
from common.http.request_context import current_priority
from common.protocol.content.openai_options import StreamOptions
from common.protocol.openai import ChatRequest, CompletionRequest, GenerationRequest
from common.protocol.openai_tools import NO_TOOLS, Toolset
from common.types import Mode, Sampling
from edge.api import ways
from edge.api.clouds.shared_prompt import SharedPrompt
from edge.api.context import ServerContext
from edge.api.planned_prompt import PlannedPrompt, planned, read_prompts, with_longest_context
from edge.api.plans import redacted_request, reuses_kv
from edge.engine.batch_turns import queue_priority
from edge.engine.text_model import TextModel
from edge.privacy.private_requests import refuse_contradiction
from edge.privacy.redaction import NO_SECRETS, Secrets
from edge.privacy.restoring import answers_in_json
from edge.text.conversation import WrittenPrompt
from edge.tool_calls import families
from edge.tool_calls.families import PLAIN, ReadingRule
from edge.tool_calls.json_calls import HERMES

COMPLETION_TOKENS = 16
"""OpenAI's default of a completion's `max_tokens`; a chat without one may go on to the end of the context."""


@dataclass(frozen=True)
class ResolvedAnswer:
    """One of a response's answers: its prompt, and what is decoded after it, with a seed of its own.

    `lookup`: whether drafts are also looked up; `prediction`: the ids of the text that is expected, for that.
    """

    prompt: SharedPrompt
    decoding: DecodingRequest
    lookup: bool = False
    prediction: tuple[int, ...] = ()
    reading: ReadingRule = PLAIN
    """How the answer's text is taken apart."""


@dataclass(frozen=True)
class ResolvedRequest:
    """All that one request asks for. `answers`: `choices` for each prompt, in the order of the prompts."""

    engine: TextModel
    """The edge's model that reads the prompts."""
    model_name: str
    """As the request names it."""
    answers: tuple[ResolvedAnswer, ...]
    choices: int
    stop: tuple[str, ...]
    top_logprobs: int | None
    """The number of alternatives at each position; None: no log probabilities."""
    reuse_kv: bool
    chat: bool
    echo: bool
    thought_budget: int | None
    """Tokens after which a thought is ended; None: no limit."""
    parallel_calls: bool
    """Whether an answer goes on after its first tool call."""
    stream: bool
    include_usage: bool
    predicted: bool
    """Whether the request says what answer it expects."""
    continuous_usage: bool
    """Whether each event of a stream has the usage so far."""
    timings: bool
    stop_token_ids: frozenset[int]
    token_sources: bool
    """Whether each token is reported with its source and confidence."""
    cloud_chat: CloudChat | None = None
    """The chat as the cloud gets it, if the edge cannot write it as a prompt."""
    secrets: Secrets = field(default_factory=dict)
    """What the answer has in place of placeholders."""
    json_text: bool = False
    """Whether what the answer says is JSON."""

    @property
    def edge_logprobs(self) -> int:
        """The number of alternatives that the edge's engine is asked for; 0: no log probabilities."""
        return 0 if self.top_logprobs is None else max(1, self.top_logprobs)


async def resolve(
    body: GenerationRequest, context: ServerContext, ends: Collection[int] = (), secrets: Secrets = NO_SECRETS
) -> ResolvedRequest:
    """What `body` asks of this server; answers also end after one of the tokens `ends`.

    `secrets`: what its prompt, of token ids, has placeholders for. Raises OverloadedError where the edge has no place
    for it, RequestError that names the first wrong field: model, unsupported ones, mode, prompt, sampling, stop.
    """
    body = ways.applied(body, context)
    body.refuse_unsupported()
    refuse_contradiction(body)
    current_priority.set(queue_priority(body.queue_priority))
    mode = body.mode or context.config.inference.mode
    model = context.model(mode)
    model.engine.check_ids([token for token, _ in body.biases], param="logit_bias")
    if not secrets:
        body, secrets = await redacted_request(body, context)
    tools = body.toolset if isinstance(body, ChatRequest) else NO_TOOLS
    # A place in the queue while the prompt is read: a full server refuses it at once, and does not read it first.
    alone = mode is Mode.CLOUD_ONLY or body.cloud_only_part is not None
    with nullcontext() if alone else model.engine.admit(1, 0):
        read = await with_longest_context(mode, context, lambda model: read_prompts(body, model, tools))
        resolved = [await planned(body, each, model, context, secrets) for each in read]
        await _check_grammar(body, tools, context)
    options = body.stream_options or StreamOptions()
    return ResolvedRequest(
        engine=model.engine,
        model_name=body.model or model.engine.model_name,
        answers=tuple(answer for prompt in resolved for answer in _answers(body, prompt, tools)),
        predicted=isinstance(body, ChatRequest) and body.prediction is not None,
        choices=body.choices,
        stop=tuple(body.stop_strings),
        top_logprobs=body.wanted_logprobs,
        reuse_kv=reuses_kv(body, context),
        chat=isinstance(body, ChatRequest),
        echo=isinstance(body, CompletionRequest) and bool(body.echo),
        thought_budget=_thought_budget(body),
        parallel_calls=tools.parallel,
        stream=bool(body.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
        timings=bool(body.timings_per_token),
        stop_token_ids=frozenset([*(body.stop_token_ids or ()), *ends, *_ends_of_gap(body, model.engine)]),
        token_sources=_wants_sources(body, mode),
        cloud_chat=_cloud_chat(body, tools),
        secrets=secrets,
        json_text=answers_in_json(body),
    )


def _wants_sources(body: GenerationRequest, mode: Mode) -> bool:
    """In mode split also beside log probabilities, which are of different models."""
    asked = body.collaboration is not None and bool(body.collaboration.tokens)
    return asked or (mode is Mode.SPLIT and body.wanted_logprobs is not None)


def _thought_budget(body: GenerationRequest) -> int | None:
    given = body.thinking_token_budget if isinstance(body, ChatRequest) else None
    return None if given == -1 else given


def _cloud_chat(body: GenerationRequest, tools: Toolset) -> CloudChat | None:
    if not isinstance(body, ChatRequest) or body.cloud_only_part is None:
        return None
    messages = msgspec.to_builtins(body.messages)
    return CloudChat(messages, _max_tokens(body), [dict(tool) for tool in tools.tools], body.template_variables)


def _ends_of_gap(body: GenerationRequest, engine: TextModel) -> Collection[int]:
    """What ends a text that is filled in: the cloud does not know, for example, the token that begins another file."""
    return engine.end_tokens if isinstance(body, CompletionRequest) and body.suffix else ()


async def _check_grammar(body: GenerationRequest, tools: Toolset, context: ServerContext) -> None:
    """Raises GrammarError for a grammar that could not be held, whoever computes the answer."""
    try:
        if (spec := body.grammar_spec) is not None:
            await context.engine.check_grammar(spec)
    except GrammarError as error:
        if tools.forced:
            raise GrammarError(f"the schemas of the tools: {error.message}", param="tools") from error
        raise


def _answers(body: GenerationRequest, prompt: PlannedPrompt, tools: Toolset) -> list[ResolvedAnswer]:
    """The choices for one prompt."""
    shared, max_tokens = prompt.shared, _max_tokens(body)
    written = shared.written
    reading = _reading(written, tools, body.grammar_spec is not None) if written else PLAIN
    limit = prompt.room if max_tokens is None else min(max_tokens, prompt.room)
    sampling = body.sampling(len(shared.ids))
    return [
        ResolvedAnswer(
            shared, DecodingRequest(shared.ids, limit, own, prompt.plan), prompt.lookup, prompt.prediction, reading
        )
        for own in (_of_choice(sampling, choice) for choice in range(body.choices))
    ]


def _reading(written: WrittenPrompt, tools: Toolset, restricted: bool) -> ReadingRule:
    """`restricted`: a grammar decides how calls are written, if there may be any, and leaves no thoughts."""
    own = HERMES[:1] if tools.schemas else ()
    return families.rule(written.template, written.text, tools.schemas, own if restricted else None)


def _max_tokens(body: GenerationRequest) -> int | None:
    assert isinstance(body, ChatRequest | CompletionRequest)
    given = body.max_tokens if isinstance(body, CompletionRequest) else body.max_completion_tokens or body.max_tokens
    if given is not None or body.n_predict == -1:
        return given
    return body.n_predict or (COMPLETION_TOKENS if isinstance(body, CompletionRequest) else None)


def _of_choice(sampling: Sampling, choice: int) -> Sampling:
    """Each choice draws its own tokens, reproducibly."""
    if sampling.seed is None or choice == 0:
        return sampling
    return msgspec.structs.replace(sampling, seed=sampling.seed + choice)
