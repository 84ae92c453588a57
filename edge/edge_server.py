"""The edge's HTTP server: routes, and what lives as long as the server. Knows neither llama.cpp nor the pipeline."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, nullcontext

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from common.cloud_client.pool import CloudPool
from common.config_schema import Config, EdgeCacheConfig, EdgeConfig
from common.decoding.online_gate import OnlineGate
from common.decoding.policy import default_plan
from common.errors import EngineError, NotFoundError, RequestError
from common.http.messages import read, reply, stream
from common.http_server import make_app
from common.protocol import codec
from common.protocol import openai as api
from common.types import DraftRequest, Mode
from edge.answer_metrics import AnswerMetrics
from edge.api import prompts
from edge.api.choice import plan_for
from edge.api.cloud_vocabulary import CloudVocabulary
from edge.api.completions import Completion
from edge.api.context import Services
from edge.api.shared_prompt import SharedPrompt
from edge.confidence import confidence_of
from edge.draft_generator import DraftGenerator
from edge.engine.engine import EdgeEngine
from edge.engine.scheduler import Confidence
from edge.engine.text_model import TextModel
from edge.kv_cache import AblatedKVCache, LlamaCppKVCache
from edge.metrics import CloudsCollector, SegmentsCollector
from edge.split.engine import EdgeInferenceEngine
from edge.text.chat_template import ChatTemplate

SERVICES = web.AppKey("SERVICES", Services)
DRAFTS = web.AppKey("DRAFTS", DraftGenerator)


def build_app(config: Config, confidence: Confidence | None = None) -> web.Application:
    """The edge server's application; the engine and the connections to the cloud start and stop with it.

    `confidence` takes the place of the strategy that the config names (F1); see examples/custom_strategy.py.
    """
    registry = CollectorRegistry()
    app = make_app(config.edge.server, registry)
    app.cleanup_ctx.append(
        lambda app: _services(app, config, registry, confidence or confidence_of(config.edge.confidence))
    )
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


async def _services(
    app: web.Application, config: Config, registry: CollectorRegistry, confidence: Confidence
) -> AsyncIterator[None]:
    engine, clouds = _engine(config.edge, confidence), CloudPool(config.communication)
    split = EdgeInferenceEngine(config, clouds) if config.edge.split.manifest else None
    async with (
        engine,
        clouds,
        ChatTemplate(engine.chat_template or "", bos=engine.bos, eos=engine.eos) as template,
        CloudVocabulary(engine, clouds.get) as vocabulary,
        split or nullcontext(),
    ):
        await clouds.greet()
        registry.register(CloudsCollector(clouds))
        if split:
            registry.register(SegmentsCollector(split.segments))
        metrics, online = AnswerMetrics(registry), _online_gate(config)
        app[SERVICES] = Services(config, engine, template, clouds, vocabulary, metrics, online, split)
        app[DRAFTS] = DraftGenerator(engine, config.inference.features.use_kv_cache and config.edge.kv_cache.enabled)
        yield


def _online_gate(config: Config) -> OnlineGate | None:
    online = config.inference.online
    return OnlineGate(online, default_plan(config).gate) if online.enabled else None


def _engine(config: EdgeConfig, confidence: Confidence) -> EdgeEngine:
    model = config.model
    return EdgeEngine(
        model.path,
        context_length=model.context_length,
        gpu_layers=model.gpu_layers,
        threads=model.threads,
        sequences=model.sequences,
        kv_type=model.kv_type,
        kv_unified=model.kv_unified,
        flash_attention=None if model.flash_attention == "auto" else model.flash_attention,
        confidence=confidence,
        store=_store(config.kv_cache),
        limits=config.limits,
    )


def _store(config: EdgeCacheConfig) -> LlamaCppKVCache | AblatedKVCache:
    if not config.enabled:
        return AblatedKVCache()
    return LlamaCppKVCache(
        max_size=config.max_size,
        ram_bytes=config.ram_bytes,
        disk_bytes=config.disk_bytes,
        directory=config.directory,
        enable_compression=config.enable_compression,
    )


async def _ready(request: web.Request) -> web.Response:
    services = request.app[SERVICES]
    if not services.engine.alive or (services.split and not services.split.segments.alive):
        raise EngineError("the edge engine has stopped")
    return reply(request, {"status": "ready"})


async def _stats(request: web.Request) -> web.Response:
    services = request.app[SERVICES]
    confidence = msgspec.to_builtins(services.config.edge.confidence)
    figures = {"engine": services.engine.stats(), "clouds": services.clouds.stats()}
    online = {"online_gate": services.online.stats()} if services.online else {}
    split = {"segments": services.split.segments.stats()} if services.split else {}
    return reply(request, figures | {"confidence": confidence} | online | split)


async def _models(request: web.Request) -> web.Response:
    return reply(request, {"object": "list", "data": [_card(request.app[SERVICES])]})


async def _model(request: web.Request) -> web.Response:
    services = request.app[SERVICES]
    _check_model(request.match_info["model"], services.engine)
    return reply(request, _card(services))


def _card(services: Services) -> dict[str, str | int]:
    card: dict[str, str | int] = {"id": services.engine.model_name, "object": "model", "owned_by": "edge"}
    return card | {"created": services.began, "max_model_len": services.engine.context_length}


def _check_model(name: str, engine: TextModel) -> None:
    if name not in ("", engine.model_name):
        raise NotFoundError(f"no model {name!r} here; this is {engine.model_name!r}", param="model")


async def _draft(request: web.Request) -> web.Response:
    return reply(request, await request.app[DRAFTS].generate_draft(await read(request, DraftRequest)))


async def _tokenize(request: web.Request) -> web.Response:
    services, body = request.app[SERVICES], await read(request, api.TokenizeRequest)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either prompt or messages", param="prompt")
    if body.messages is not None:
        tokens = await prompts.of_chat(services.speaker(Mode.EDGE_ONLY), body.messages, body.add_generation_prompt)
    else:
        tokens = await prompts.tokenized(
            services.engine, body.prompt or "", body.add_special_tokens, parse_special=True
        )
    return reply(
        request, api.TokenizeReply(tokens=tokens, count=len(tokens), max_model_len=services.engine.context_length)
    )


async def _detokenize(request: web.Request) -> web.Response:
    engine, body = request.app[SERVICES].engine, await read(request, api.DetokenizeRequest)
    prompts.check_ids(engine, body.tokens, param="tokens")
    return reply(request, api.DetokenizeReply(engine.detokenize(body.tokens)))


async def _tokenizer(request: web.Request) -> web.Response:
    return reply(request, await request.app[SERVICES].vocabulary.info())


async def _tokenizer_info(request: web.Request) -> web.Response:
    """As vLLM has it: with it and the two above, lm-eval needs no tokenizer of its own."""
    engine = request.app[SERVICES].engine
    names = {"bos_token": engine.bos or None, "eos_token": engine.eos or None}
    return reply(request, names | {"chat_template": engine.chat_template})


async def _completions(request: web.Request) -> web.StreamResponse:
    services, body = request.app[SERVICES], await read(request, api.CompletionRequest)
    body.refuse_unsupported()
    ids = await prompts.of_completion(services.speaker(body.mode), body)
    shared = [await _shared(services, body, *each) for each in zip(ids, body.prompts, strict=True)]
    return await _respond(request, services, body, shared, body.max_tokens)


async def _chat(request: web.Request) -> web.StreamResponse:
    services, body = request.app[SERVICES], await read(request, api.ChatRequest)
    body.refuse_unsupported()
    speaker = services.speaker(body.mode)
    ids = await prompts.of_chat(speaker, body.messages)
    prompts.check_room(speaker.engine, len(ids), param="messages")
    shared = await _shared(services, body, ids)
    return await _respond(request, services, body, [shared], body.max_completion_tokens or body.max_tokens)


async def _shared(
    services: Services, body: api.GenerationRequest, ids: list[int], given: str | list[int] = ""
) -> SharedPrompt:
    """The prompt in the ids of all that take part in the answer."""
    plan = plan_for(body, services, services.is_private(ids, body.mode))
    if plan.mode is Mode.SPLIT or not plan.asks_cloud:
        return SharedPrompt(ids, ids, services.speaker(body.mode).engine.piece)
    if isinstance(body, api.ChatRequest):
        shared = await services.vocabulary.share(ids, messages=body.messages)
    else:
        shared = await services.vocabulary.share(ids, text=given if isinstance(given, str) else None)
    prompts.check_room(services.engine, shared.longest, param="prompt")
    return shared


async def _respond(
    request: web.Request,
    services: Services,
    body: api.GenerationRequest,
    prompts: list[SharedPrompt],
    max_tokens: int | None,
) -> web.StreamResponse:
    _check_model(body.model, services.speaker(body.mode).engine)
    completion = Completion(services, body, prompts, max_tokens)
    if not body.stream:
        return reply(request, await completion.whole())
    async with aclosing(_events(completion)) as events:
        first = await anext(events)  # what fails before it is still an HTTP error
        return await stream(request, _from(first, events))


async def _from(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for event in rest:
        yield event


async def _events(completion: Completion) -> AsyncGenerator[bytes, None]:
    async with aclosing(completion.events()) as events:
        async for event in events:
            yield b"data: " + codec.encode(event) + b"\n\n"
    yield b"data: [DONE]\n\n"
