"""The plan of a request: the server's own, with what the request's fields set."""

import dataclasses
import logging
from typing import TypeVar

import msgspec

from common.decoding.policy import Plan, reasoning_gate
from common.errors import RequestError, UnsupportedError
from common.protocol.openai import CompletionRequest, GenerationRequest
from common.routing import features
from common.routing.router import Router, Routing
from common.types import Mode
from edge.api.clouds.shared_prompt import SharedPrompt
from edge.api.context import ServedModel, ServerContext
from edge.privacy.private_requests import has_tool_results, kept_by
from edge.privacy.redaction import BODY, NO_SECRETS, Secrets, redacted, still_private, texts_beside_prompt

T = TypeVar("T")
log = logging.getLogger(__name__)
ANSWERS_ALONE = "the cloud verifies no drafts, so it answers alone"
PRIVATE = "the request is private"
TOO_LONG = "the prompt does not fit the edge's context"
TOO_LONG_FOR_CLOUD = "the prompt does not fit the cloud's context"
TAKES_OVER = "the cloud verifies no drafts: it takes over from the first token on that is not confident"


def plan_for(body: GenerationRequest, context: ServerContext, private: bool) -> Plan:
    """The plan for one prompt; `private`: nothing of it may leave the edge. Raises RequestError as `plan_of` does."""
    if (part := body.cloud_only_part) is not None:
        return _of_cloud_alone(body, context.plan, private, part)
    if (body.mode or context.plan.mode) is not Mode.SPLIT:
        return plan_of(body, context.plan, private)
    use_exits = given(body.use_confidence_check, context.plan.use_confidence_check)
    standalone = private or bool(kept_by(body))
    return context.split_engine.plan(body.confidence_threshold, use_exits, standalone)


def plan_of(body: GenerationRequest, default: Plan, private: bool = False) -> Plan:
    """The `default` plan with what this request sets; not for mode split.

    The edge alone answers a `private` prompt, and a request that asks for privacy, whatever else is set; also one with
    a field that only the edge alone supports, unless it names another mode than route: then RequestError.
    """
    gate = default.gate
    if body.confidence_threshold is not None:
        gate = dataclasses.replace(gate, threshold=body.confidence_threshold)
    if body.product_threshold is not None:
        gate = dataclasses.replace(gate, product_threshold=body.product_threshold)
    reasoning = default.reasoning_gate
    if body.confidence_threshold_reasoning is not None:
        reasoning = reasoning_gate(body.confidence_threshold_reasoning)
    mode, because = body.mode or default.mode, default.mode_because
    if (private or kept_by(body)) and mode is not Mode.EDGE_ONLY:
        mode, because = Mode.EDGE_ONLY, PRIVATE
    plan = dataclasses.replace(
        default,
        mode=mode,
        mode_because=because,
        gate=gate,
        reasoning_gate=reasoning,
        use_confidence_check=given(body.use_confidence_check, default.use_confidence_check),
        use_draft_verify=given(body.use_draft_verify, default.use_draft_verify),
        max_draft_tokens=given(body.max_draft_tokens, default.max_draft_tokens),
        objective=given(body.objective, default.objective),
        verification_mode=given(body.way, default.verification_mode),
        draft_ahead=given(body.draft_ahead, default.draft_ahead),
    )
    name = body.edge_only_field or (plan.handover and body.one_model_field)
    if not (name and plan.asks_cloud):
        return plan if plan.handover is None else _without_verifying(body, plan)
    if body.mode not in (None, Mode.ROUTE):
        raise UnsupportedError(f'{name} is supported where the edge answers alone: ask in mode "edge_only"', param=name)
    return dataclasses.replace(plan, mode=Mode.EDGE_ONLY, mode_because=f"{name} is supported by the edge alone")


def _without_verifying(body: GenerationRequest, plan: Plan) -> Plan:
    """The plan on clouds that verify nothing: what is lossless they answer alone, else they take over from the gate.

    Raises RequestError where the request itself asks for a lossless answer of both.
    """
    if plan.mode is not Mode.COLLABORATIVE or not plan.asks_cloud:
        return plan
    if not plan.lossless:
        return dataclasses.replace(plan, use_draft_verify=False, mode_because=TAKES_OVER)
    if body.use_confidence_check is not None or body.use_draft_verify is not None:
        hint = 'ask in mode "cloud_only", or with "use_confidence_check": true'
        raise RequestError(f"a lossless answer of both needs a cloud that verifies drafts: {hint}", "use_draft_verify")
    return dataclasses.replace(plan, mode=Mode.CLOUD_ONLY, mode_because=ANSWERS_ALONE)


def _of_cloud_alone(body: GenerationRequest, default: Plan, private: bool, part: str) -> Plan:
    """The plan for a prompt with a part that the edge cannot read; raises RequestError if it may not leave the edge."""
    if private or kept_by(body):
        raise RequestError(f"{part} is read by the cloud alone, and this request is private", param="messages")
    if body.edge_only_field:
        raise RequestError(f"{part} is read by the cloud alone, which has no {body.edge_only_field}", param="messages")
    if body.mode not in (None, Mode.CLOUD_ONLY, Mode.ROUTE):
        raise RequestError(f'{part} is read by the cloud alone: ask in mode "cloud_only"', param="messages")
    if default.handover is not None:  # a cloud of another kind takes the whole request, if it may
        raise UnsupportedError(f"content of type {part!r} is not supported, only text", param="messages")
    plan = plan_of(msgspec.structs.replace(body, mode=Mode.CLOUD_ONLY), default)
    if body.mode is Mode.CLOUD_ONLY:
        return plan
    return dataclasses.replace(plan, mode_because=f"{part} is read by the cloud alone")


def with_router(plan: Plan, body: GenerationRequest, text: str, prompt: SharedPrompt, context: ServerContext) -> Plan:
    """A plan of mode route with what decides; `text`: what the user asks last in the `prompt`.

    A prompt that is too long for one side is answered by the other. Raises RequestError where the server has no router,
    and for log probabilities of the prompt.
    """
    router = context.router
    if router is None:
        hint = "set edge.router.path to what `edgecloud calibrate --router` wrote"
        raise RequestError(f'mode "route" needs a router, which this server does not have: {hint}', param="mode")
    if isinstance(body, CompletionRequest) and body.echo and body.logprobs is not None:
        raise RequestError('a prompt is scored by the model that answers, which mode "route" chooses later', "echo")
    if len(prompt.edge_ids) >= context.engine.context_length:
        return dataclasses.replace(plan, mode=Mode.CLOUD_ONLY, mode_because=TOO_LONG)
    if prompt.context_length is not None and len(prompt.ids) >= context.allowed(prompt.context_length):
        return dataclasses.replace(plan, mode=Mode.EDGE_ONLY, mode_because=TOO_LONG_FOR_CLOUD)
    _warn_of_another_cloud(router, context)
    threshold = given(body.route_threshold, context.route_threshold)
    routing = Routing(router, threshold, features.of_prompt(text, len(prompt.edge_ids)))
    return dataclasses.replace(plan, routing=routing)


def _warn_of_another_cloud(router: Router, context: ServerContext) -> None:
    """Once for each model: clouds tell theirs only when they are there, and may change it."""
    model, trained = context.vocabulary.cloud_model, router.training.cloud_model
    if model and model not in context.routed_clouds:
        context.routed_clouds.add(model)
        if model != trained:
            log.warning("%s was trained on the cloud's %s, not on %s", context.config.edge.router.path, trained, model)


async def redacted_request(body: BODY, context: ServerContext) -> tuple[BODY, Secrets]:
    """The request as edge and cloud are to read it, and the private words that its answer gets back.

    As it is where nothing of it leaves the edge.
    """
    if context.private is None or not redacts(body, context):
        return body, NO_SECRETS
    if not context.costs.within_budget(plan_for(body, context, private=False)).asks_cloud:
        return body, NO_SECRETS
    return await redacted(body, context.private)


def redacts(body: GenerationRequest, context: ServerContext) -> bool:
    """Whether private words of this request may be replaced.

    Not beside an image, which is not searched, nor where log probabilities are asked for: they are of what was read.
    """
    if context.config.inference.private_action != "redact" or stays(body, context):
        return False
    return body.cloud_only_part is None and body.wanted_logprobs is None


async def is_private(
    body: GenerationRequest, ids: list[int], model: ServedModel, context: ServerContext, secrets: Secrets
) -> bool:
    """Whether nothing of a request with this prompt may leave the edge; `secrets` are those that it has no more.

    Some clouds get a chat whole, also what its template leaves out.
    """
    if context.private is None or stays(body, context):
        return stays(body, context)
    texts = [model.engine.detokenize(ids, special=True), *texts_beside_prompt(body)]
    return await still_private("\n".join(texts), secrets, context.private)


def stays(body: GenerationRequest, context: ServerContext) -> bool:
    """Whether a request stays at the edge, whatever its words are."""
    return bool(kept_by(body)) or (context.config.inference.private_tool_results and has_tool_results(body))


def reuses_kv(body: GenerationRequest, context: ServerContext) -> bool:
    """Whether KV is reused between requests (F3)."""
    wanted = given(body.use_kv_cache, context.config.inference.features.use_kv_cache)
    return wanted and context.config.edge.kv_cache.enabled


def given(value: T | None, default: T) -> T:
    """A field's `value`, or the `default` if the request does not set it."""
    return default if value is None else value
