"""The edge's HTTP server: its routes and their handlers."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry

from common.config_schema import Config
from common.decoding.explanation import policy_view
from common.decoding.progress import watched
from common.errors import FrameworkError
from common.http.messages import ERROR_OBJECT, TENANT, read, reply, stream
from common.http_server import LIVENESS, add_document, make_app
from common.protocol import openai as api
from common.protocol import openapi
from common.protocol.content import anthropic_errors
from common.types import DraftRequest
from edge import tokenizer_routes
from edge.answering import generation
from edge.api import openapi as edge_openapi
from edge.api import startup, ways
from edge.api.context import CONTEXT
from edge.batches import openapi as batches_openapi
from edge.batches import routes as batches
from edge.confidence import confidence_of
from edge.console import pages
from edge.dialects import infill, messages, responses
from edge.dialects import openapi as dialects_openapi
from edge.dialects.infill_request import InfillRequest
from edge.dialects.messages_request import CountTokensRequest, MessagesRequest
from edge.dialects.response_store import ResponseStore
from edge.dialects.responses_request import ResponsesRequest
from edge.embeddings import embeddings, passed_on
from edge.engine.scheduler import Confidence
from edge.privacy.private_requests import observe_privacy
from edge.tenants.counted_routes import QUOTAS, add_headers, counted
from edge.tenants.token_guess import guessed_tokens

OPERATIONS = (*edge_openapi.OPERATIONS, *dialects_openapi.OPERATIONS)
RESPONSES = web.AppKey("RESPONSES", ResponseStore)


def build_app(config: Config, confidence: Confidence | None = None) -> web.Application:
    """The edge server's application; the engine and the connections to the cloud start and stop with it.

    `confidence` replaces the strategy that the config names (F1); see examples/custom_strategy.py.
    """
    registry = CollectorRegistry()
    console = config.edge.console
    server = msgspec.structs.replace(config.edge.server, api_keys=config.edge.keys)
    app = make_app(server, registry, public=pages.ROUTES if console else ())
    app.middlewares.append(observe_privacy(config.edge.private_keys))
    strategy = confidence or confidence_of(config.edge.confidence)

    async def running(app: web.Application) -> AsyncIterator[None]:
        with batches.opened(config.edge.batches) as store:  # a wrong folder ends the start before a model is loaded
            async with startup.started(config, registry, strategy) as app[CONTEXT]:
                app[LIVENESS], app[QUOTAS] = app[CONTEXT].check_alive, app[CONTEXT].quotas
                async with batches.running(app, store, app[CONTEXT], app[RESPONSES]):
                    yield

    app[RESPONSES] = ResponseStore()
    app.cleanup_ctx.append(running)
    app.on_response_prepare.append(add_headers)
    if console:
        pages.add_console(app)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/stats", _stats)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/v1/models/{model:.+}", _model)  # a hub id has a slash
    app.router.add_post("/draft", counted(_draft))
    tokenizer_routes.add_routes(app)
    app.router.add_post("/v1/completions", counted(_completions))
    app.router.add_post("/v1/chat/completions", counted(_chat))
    app.router.add_post("/infill", counted(_infill))
    app.router.add_post("/v1/embeddings", counted(_embeddings))
    app.router.add_post("/v1/rerank", counted(_pass_on))
    app.router.add_post("/v1/score", counted(_pass_on))
    app.router.add_post("/v1/responses", counted(_responses))
    app.router.add_post("/v1/messages", _anthropic(counted(_messages)))
    app.router.add_post("/v1/messages/count_tokens", _anthropic(_count_tokens))
    operations: tuple[openapi.Operation, ...] = OPERATIONS
    if config.edge.batches.directory:
        batches.add_routes(app)
        operations += batches_openapi.OPERATIONS
    add_document(app, openapi.document("The edge server", operations, keys=bool(config.edge.keys)))
    return app


async def _ready(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    context.check_alive()
    await context.vocabulary.info()
    return reply(request, {"status": "ready"})


async def _stats(request: web.Request) -> web.Response:
    """With more than one API key each gets its own figures only: those of all show what the others ask."""
    context = request.app[CONTEXT]
    confidence = msgspec.to_builtins(context.config.edge.confidence)
    engine = context.engine
    router = {"router": context.router_stats()} if context.router else {}
    if len(context.config.edge.keys) > 1:
        own = request[TENANT]
        use = {"costs": context.costs.stats(own), "quotas": context.quotas.stats(own)}
        return reply(request, {"engine": engine.stats(own), "confidence": confidence} | router | use)
    figures = {"engine": engine.stats(), "hardware": engine.settings(), "clouds": context.clouds.stats()}
    figures |= {"costs": context.costs.stats(), "quotas": context.quotas.stats()}
    online = {"online_gate": context.online.stats()} if context.online else {}
    split = {"segments": context.split.segments.stats()} if context.split else {}
    policy = {"policy": msgspec.to_builtins(policy_view(context.plan, context.estimates))}
    saved = {"savings": context.savings.stats()}
    return reply(request, figures | {"confidence": confidence} | policy | saved | online | router | split)


async def _models(request: web.Request) -> web.Response:
    return reply(request, {"object": "list", "data": list(ways.cards(request.app[CONTEXT]))})


async def _model(request: web.Request) -> web.Response:
    context, name = request.app[CONTEXT], request.match_info["model"]
    if (card := next((one for one in ways.cards(context) if one["id"] == name), None)) is None:
        ways.find(name, context)
    return reply(request, card)


async def _draft(request: web.Request) -> web.Response:
    body, context = await read(request, DraftRequest), request.app[CONTEXT]
    guess = guessed_tokens({"prompt": body.prompt if body.prompt_token_ids is None else body.prompt_token_ids})
    context.quotas.admit_prompt(guess)  # of a client that leaves early it stays
    try:
        async with watched():
            drafted = await context.drafts.generate_draft(body)
    except FrameworkError:
        context.quotas.settle_prompt(guess, 0)
        raise
    context.quotas.settle_prompt(guess, drafted.prompt_tokens)
    context.quotas.record(len(drafted.draft_token_ids))
    return reply(request, drafted)


async def _completions(request: web.Request) -> web.StreamResponse:
    return await _respond(request, await read(request, api.CompletionRequest))


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _respond(request, await read(request, api.ChatRequest))


async def _respond(request: web.Request, body: api.GenerationRequest) -> web.StreamResponse:
    context = request.app[CONTEXT]
    raw = await read(request, dict) if context.text_clouds else {}
    answer = await generation(request.path, body, raw, context)
    if not body.stream:
        return reply(request, await answer.whole())
    return await _stream(request, answer.events())


async def _infill(request: web.Request) -> web.StreamResponse:
    body = await read(request, InfillRequest)
    answer = await infill.answer(body, request.app[CONTEXT])
    return await _stream(request, answer.events()) if body.stream else reply(request, await answer.whole())


async def _embeddings(request: web.Request) -> web.Response:
    return reply(request, await embeddings.embed(await read(request, dict[str, Any]), request.app[CONTEXT]))


async def _pass_on(request: web.Request) -> web.Response:
    body = await read(request, dict[str, Any])
    return reply(request, await passed_on.post(request.path, body, request.app[CONTEXT]))


async def _responses(request: web.Request) -> web.StreamResponse:
    body = await read(request, ResponsesRequest)
    answer = await responses.answer(body, request.app[CONTEXT], request.app[RESPONSES], request[TENANT])
    return await _stream(request, answer.events()) if body.stream else reply(request, await answer.whole())


def _anthropic(handler: Handler) -> Handler:
    """The handler, whose errors are written as Anthropic's."""

    async def handled(request: web.Request) -> web.StreamResponse:
        request[ERROR_OBJECT] = anthropic_errors.error_body
        return await handler(request)

    return handled


async def _messages(request: web.Request) -> web.StreamResponse:
    body = await read(request, MessagesRequest)
    answer = await messages.answer(body, request.app[CONTEXT])
    if not body.stream:
        return reply(request, await answer.whole())
    return await _stream(request, answer.events(), anthropic_errors.error_event)


async def _count_tokens(request: web.Request) -> web.Response:
    return reply(request, await messages.count_tokens(await read(request, CountTokensRequest), request.app[CONTEXT]))


async def _stream(
    request: web.Request,
    events: AsyncGenerator[bytes, None],
    error_event: Callable[[FrameworkError], bytes] | None = None,
) -> web.StreamResponse:
    async with aclosing(events):
        first = await anext(events)  # an error before the first event is still an HTTP error
        return await stream(request, _chain(first, events), error_event)


async def _chain(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for event in rest:
        yield event
