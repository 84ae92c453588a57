"""The edge's HTTP server: its routes and their handlers."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from common.config_schema import Config
from common.errors import EngineError, NotFoundError, RequestError
from common.http.messages import TENANT, read, reply, stream
from common.http_server import make_app
from common.protocol import openai as api
from common.protocol import tokenization
from common.types import DraftRequest, Mode
from edge.api import prompts, startup
from edge.api.completions import Completion
from edge.api.context import ServerContext
from edge.api.resolve import resolve
from edge.confidence import confidence_of
from edge.engine.scheduler import Confidence
from edge.engine.text_model import TextModel

CONTEXT = web.AppKey("CONTEXT", ServerContext)


def build_app(config: Config, confidence: Confidence | None = None) -> web.Application:
    """The edge server's application; the engine and the connections to the cloud start and stop with it.

    `confidence` replaces the strategy that the config names (F1); see examples/custom_strategy.py.
    """
    registry = CollectorRegistry()
    app = make_app(config.edge.server, registry)
    strategy = confidence or confidence_of(config.edge.confidence)

    async def running(app: web.Application) -> AsyncIterator[None]:
        async with startup.started(config, registry, strategy) as app[CONTEXT]:
            yield

    app.cleanup_ctx.append(running)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/stats", _stats)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/v1/models/{model}", _model)
    app.router.add_post("/draft", _draft)
    app.router.add_post("/tokenize", _tokenize)
    app.router.add_post("/detokenize", _detokenize)
    app.router.add_get("/tokenizer", _tokenizer)
    app.router.add_get("/tokenizer_info", _tokenizer_info)
    app.router.add_post("/v1/completions", _completions)
    app.router.add_post("/v1/chat/completions", _chat)
    return app


async def _ready(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    if not context.engine.alive or (context.split and not context.split.segments.alive):
        raise EngineError("the edge engine has stopped")
    await context.vocabulary.info()
    return reply(request, {"status": "ready"})


async def _stats(request: web.Request) -> web.Response:
    """With more than one API key each gets its own figures only: those of all show what the others ask."""
    context = request.app[CONTEXT]
    confidence = msgspec.to_builtins(context.config.edge.confidence)
    engine = context.engine
    if len(context.config.edge.server.api_keys) > 1:
        return reply(request, {"engine": engine.stats(request[TENANT]), "confidence": confidence})
    figures = {"engine": engine.stats(), "hardware": engine.settings(), "clouds": context.clouds.stats()}
    online = {"online_gate": context.online.stats()} if context.online else {}
    split = {"segments": context.split.segments.stats()} if context.split else {}
    return reply(request, figures | {"confidence": confidence} | online | split)


async def _models(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    return reply(request, {"object": "list", "data": [_card(context, engine) for engine in context.models.values()]})


async def _model(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    name = request.match_info["model"]
    if name not in context.models:
        raise NotFoundError(f"no model {name!r} here; there is {', '.join(map(repr, context.models))}", param="model")
    return reply(request, _card(context, context.models[name]))


def _card(context: ServerContext, engine: TextModel) -> dict[str, str | int]:
    card: dict[str, str | int] = {"id": engine.model_name, "object": "model", "owned_by": "edge"}
    return card | {"created": context.started_at, "max_model_len": engine.context_length}


async def _draft(request: web.Request) -> web.Response:
    return reply(request, await request.app[CONTEXT].drafts.generate_draft(await read(request, DraftRequest)))


async def _tokenize(request: web.Request) -> web.Response:
    context, body = request.app[CONTEXT], await read(request, tokenization.TokenizeRequest)
    model = context.model(Mode.EDGE_ONLY)
    engine = model.engine
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either prompt or messages", param="prompt")
    if body.messages is not None:
        tokens = await prompts.of_chat(model, body.messages, body.add_generation_prompt)
    else:
        tokens = await prompts.tokenize(model, body.prompt or "", body.add_special_tokens, parse_special=True)
    return reply(
        request, tokenization.TokenizeReply(tokens=tokens, count=len(tokens), max_model_len=engine.context_length)
    )


async def _detokenize(request: web.Request) -> web.Response:
    engine, body = request.app[CONTEXT].engine, await read(request, tokenization.DetokenizeRequest)
    prompts.check_ids(engine, body.tokens, param="tokens")
    return reply(request, tokenization.DetokenizeReply(engine.detokenize(body.tokens)))


async def _tokenizer(request: web.Request) -> web.Response:
    return reply(request, await request.app[CONTEXT].vocabulary.info())


async def _tokenizer_info(request: web.Request) -> web.Response:
    """As in vLLM; with this route and the two above, lm-eval needs no tokenizer of its own."""
    engine = request.app[CONTEXT].engine
    names = {"bos_token": engine.bos or None, "eos_token": engine.eos or None}
    return reply(request, names | {"chat_template": engine.chat_template})


async def _completions(request: web.Request) -> web.StreamResponse:
    return await _respond(request, await read(request, api.CompletionRequest))


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _respond(request, await read(request, api.ChatRequest))


async def _respond(request: web.Request, body: api.GenerationRequest) -> web.StreamResponse:
    context = request.app[CONTEXT]
    resolved = await resolve(body, context)
    completion = Completion(resolved, context)
    if not resolved.stream:
        return reply(request, await completion.whole())
    async with aclosing(completion.events()) as events:
        first = await anext(events)  # an error before the first event is still an HTTP error
        return await stream(request, _chain(first, events))


async def _chain(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for event in rest:
        yield event
