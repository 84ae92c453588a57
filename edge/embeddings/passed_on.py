"""Requests that the edge passes on to a cloud as they are, and which never if their texts are private."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from common.cloud_client.openai_client import OpenAIClient
from common.cloud_client.openai_stream import reported_count
from common.cloud_client.pool import Cloud
from common.cloud_client.privacy import has_token_ids, numbers_of, texts_of
from common.decoding.policy import Plan
from common.errors import FrameworkError, RequestError
from common.http.traffic import Traffic
from common.types import Mode
from edge.api import ways
from edge.api.context import ServerContext
from edge.privacy.private_requests import kept_by_caller
from edge.tenants.token_guess import guessed_tokens

SETTINGS = frozenset({"dimensions", "top_n"})
"""Numbers that are not of what is asked."""


async def post(path: str, body: dict[str, Any], context: ServerContext) -> dict[str, Any]:
    """The reply of a cloud to POST `path`.

    Raises RequestError for what a cloud refuses and for private texts, RateLimitError when the day's
    budget is spent or the key has too few tokens left, EndpointError when no cloud can be used.
    """
    if name := taken_privacy(body):
        raise RequestError(f"the edge has no model for this, and {name} keeps it from the cloud", param=name)
    if context.private is not None:
        if has_token_ids(body):
            raise RequestError("the edge has no model for this, and token ids may be private: send text", param="input")
        parts = [value for name, value in body.items() if name not in SETTINGS]
        if await context.private.match("\n".join([*texts_of(parts), *numbers_of(parts)])):
            raise RequestError("the edge has no model for this, and the text is private (inference.private_patterns)")
    _refuse_the_edges_own(body, context)
    context.costs.within_budget(Plan(mode=Mode.CLOUD_ONLY), only_cloud=True)
    cloud = context.clouds.pick(())
    if body.get("model") in ("auto", "cloud"):
        del body["model"]
    guess, traffic = guessed_tokens(body), Traffic()
    context.quotas.admit_prompt(guess)
    try:
        reply = await _reply(path, body, context, cloud, traffic)
    except asyncio.CancelledError:  # the client has left, and the cloud has read all the same
        if traffic.calls:
            context.record_passed_on(guess, guess, cloud)
        else:
            context.quotas.settle_prompt(guess, 0)
        raise
    except FrameworkError:
        context.quotas.settle_prompt(guess, 0)
        raise
    context.record_passed_on(guess, _tokens(reply, guess), cloud)
    return reply


async def _reply(
    path: str, body: dict[str, Any], context: ServerContext, cloud: Cloud, traffic: Traffic
) -> dict[str, Any]:
    if isinstance(cloud.client, OpenAIClient):  # its base URL has the version
        path = path.removeprefix("/v1")
        tracked: AbstractContextManager[None] = (
            nullcontext()
        )  # that it lacks this route or model says nothing of its answers
    else:
        tracked = context.clouds.track_call(cloud)
    with tracked:
        reply: dict[str, Any] = await cloud.client.post(path, body, dict, traffic)
    return reply


def taken_privacy(body: dict[str, Any]) -> str:
    """What says that the request stays at the edge; its fields are taken out of `body`, which others do not know."""
    given = [name for name in ("privacy", "private") if body.pop(name, None)]
    return given[0] if given else kept_by_caller()


def _tokens(reply: dict[str, Any], guess: int) -> int:
    """The tokens that the cloud has read, as it says; the guess if it does not."""
    usage = reply.get("usage")
    tokens = reported_count(usage.get("total_tokens")) if isinstance(usage, dict) else None
    return tokens or guess


def _refuse_the_edges_own(body: dict[str, Any], context: ServerContext) -> None:
    """Raises RequestError if the model's name, or else the config, says that the edge alone answers."""
    name = body.get("model")
    way = ways.named(context).get(name) if isinstance(name, str) else None
    mode = (way.mode if way else None) or context.config.inference.mode
    if mode is Mode.EDGE_ONLY:
        raise RequestError("the edge has no model for this, and no cloud may be asked: name another model", "model")
