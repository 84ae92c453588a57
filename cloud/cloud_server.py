"""Builds the cloud server: its parts, and the routes /verify, /ready and /stats."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from cloud.draft_verifier import DraftVerifier
from cloud.engine.engine import CloudEngine
from cloud.engine.supervisor import EngineSupervisor, SupervisorTiming
from cloud.metrics import CloudMetrics, VerifyForm
from cloud.routes import request_cost
from cloud.routes.admission import Admission
from cloud.routes.dialects import DialectRoutes
from cloud.routes.engine_turns import EngineTurns
from cloud.routes.openai import OpenAIRoutes
from cloud.routes.openapi import operations
from cloud.routes.serving import Serving
from cloud.routes.stream import DRAFT_CHANNEL, StreamRoute
from cloud.routes.tokenizer import TokenizerRoute
from cloud.split.service import SplitService, not_served
from cloud.verify import validation
from cloud.verify.continuous import ContinuousAnswer
from cloud.verify.resident_pool import ResidentPool
from cloud.verify.sessions import SessionTable
from common.config_cloud import AdmissionConfig, CloudConfig
from common.errors import FrameworkError, RequestError
from common.fair_queue import WeightOf
from common.http.auth import tenant_name
from common.http.messages import REQUEST_ID, read, reply, tenant_of
from common.http.request_context import current_priority
from common.http_server import FATAL, add_document, make_app
from common.protocol import openapi
from common.types import (
    ErrorObject,
    VerifyBatchItem,
    VerifyBatchRequest,
    VerifyBatchResponse,
    VerifyRequest,
    VerifyResponse,
)

ENGINE = web.AppKey("ENGINE", CloudEngine)
SESSIONS = web.AppKey("SESSIONS", SessionTable)
RESIDENTS = web.AppKey("RESIDENTS", ResidentPool)
VERIFIER = web.AppKey("VERIFIER", DraftVerifier)
ADMISSION = web.AppKey("ADMISSION", Admission)
TURNS = web.AppKey("TURNS", EngineTurns)
METRICS = web.AppKey("METRICS", CloudMetrics)
SUPERVISOR = web.AppKey("SUPERVISOR", EngineSupervisor)
TOKENIZER = web.AppKey("TOKENIZER", TokenizerRoute)
SPLIT = web.AppKey("SPLIT", SplitService)

MAX_BATCH = 128
"""Maximum number of rounds in one POST /verify/batch."""


def build_app(engine: CloudEngine, config: CloudConfig) -> web.Application:
    """The cloud server's application; it owns `engine`, starts it once the port is open, and closes it at the end."""
    registry = CollectorRegistry()
    app = make_app(msgspec.structs.replace(config.server, api_keys=config.keys), registry)
    app[ENGINE] = engine
    app[SESSIONS] = SessionTable()
    drafts = config.draft_verifier
    limits, weight = config.admission, weight_of(config.admission)
    turns = app[TURNS] = EngineTurns(config.sequences, weight)
    app[RESIDENTS] = ResidentPool(engine, config.residents, drafts.resident_idle_seconds, turns.turn)
    app[VERIFIER] = DraftVerifier(engine, app[SESSIONS], app[RESIDENTS], turns.turn)
    app[ADMISSION] = Admission(
        limits.max_requests, limits.max_tokens, config.sequences, weight=weight, waiting=lambda: turns.people
    )
    app[METRICS] = CloudMetrics(registry)
    app[SUPERVISOR] = EngineSupervisor(
        engine, SupervisorTiming(hang=config.engine.hang_seconds), app[METRICS].engine_restarts.inc
    )
    app.cleanup_ctx.append(_own_engine)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/stats", _stats)
    app.router.add_post("/verify", _verify)
    app.router.add_post("/verify/batch", _verify_batch)
    app[TOKENIZER] = TokenizerRoute(engine)
    app[TOKENIZER].add_to(app)
    StreamRoute(
        engine,
        validation.check_sampling,
        partial(_work, app),
        turns.turn,
        lambda answer: _record_stream(app, answer),
        app[TOKENIZER].check,
    ).add_to(app)
    serving = Serving(engine, app[SUPERVISOR], app[ADMISSION], app[TURNS])
    OpenAIRoutes(serving).add_to(app)
    DialectRoutes(serving).add_to(app)
    _register_metrics(app)
    _add_split(app, config)
    listed, schemas = operations()
    add_document(app, openapi.document("The cloud server", listed, keys=bool(config.keys), schemas=schemas))
    return app


def weight_of(config: AdmissionConfig) -> WeightOf:
    """The weight of each tenant."""
    weights = {tenant_name(entry.api_key): entry.weight for entry in config.keys}
    return lambda tenant: weights.get(tenant, 1.0)


def _add_split(app: web.Application, config: CloudConfig) -> None:
    if not config.split.manifest:
        app.router.add_get("/split", not_served)
        return
    admit = partial(app[ADMISSION].admit, begun=True)  # around each token: most have an answer before them
    app[SPLIT] = SplitService(config.split, SupervisorTiming(hang=config.engine.hang_seconds), admit)
    app[SPLIT].add_to(app)
    app[SPLIT].register_metrics(app[METRICS])


def _register_metrics(app: web.Application) -> None:
    """Registers the metrics that are read from the server's parts at each scrape."""
    admission, gauge = app[ADMISSION], app[METRICS].gauge
    gauge("sessions", "Sessions whose prefixes are held.", lambda: len(app[SESSIONS]))
    gauge("session_bytes", "Bytes of the prefixes held.", lambda: app[SESSIONS].bytes)
    gauge("kv_blocks", "Different KV blocks in prefix caches.", lambda: app[ENGINE].kv_cache.stats().blocks)
    gauge("kv_block_evictions", "KV blocks evicted so far.", lambda: app[ENGINE].kv_cache.stats().evictions)
    gauge("resident_sessions", "Sessions with a live request in the engine.", lambda: len(app[RESIDENTS]))
    gauge("admission_requests", "Sequences admitted to the engine now.", lambda: admission.held.requests)
    gauge("admission_tokens", "Tokens that these may grow to.", lambda: admission.held.tokens)
    gauge("turns_waiting", "Requests that wait for a place in the engine.", lambda: len(app[TURNS]))
    turns, total = app[TURNS], app[METRICS].total
    total("turns", "Turns at the engine that have ended.", lambda: turns.ended)
    total("turn_wait_seconds", "Seconds that these waited for a place.", lambda: turns.waited_seconds)
    total("turn_seconds", "Seconds that the engine took for them.", lambda: turns.held_seconds)
    gauge("admission_refused", "Requests refused for want of room.", lambda: admission.refused)
    app[METRICS].register_dropped(lambda reason: int(getattr(app[DRAFT_CHANNEL].counters, reason)))


async def _own_engine(app: web.Application) -> AsyncIterator[None]:
    supervising = asyncio.create_task(_supervise(app))
    yield
    await app[RESIDENTS].close()
    supervising.cancel()
    await asyncio.wait([supervising])


async def _supervise(app: web.Application) -> None:
    try:
        await app[SUPERVISOR].run()
    except Exception as error:  # of any kind: without a supervisor the server cannot go on
        app[FATAL].set_exception(error)


async def _ready(request: web.Request) -> web.Response:
    request.app[SUPERVISOR].check()
    if SPLIT in request.app:
        request.app[SPLIT].check_started()
    await request.app[TOKENIZER].prepare()
    return reply(request, {"status": "ready"})


async def _stats(request: web.Request) -> web.Response:
    app = request.app
    residents = app[RESIDENTS]
    sessions = {
        "sessions": len(app[SESSIONS]),
        "session_bytes": app[SESSIONS].bytes,
        "resident_sessions": len(residents),
        "resident_opened": residents.opened,
        "resident_continued": residents.continued,
        "resident_closed": residents.closed,
    }
    kv_cache = msgspec.to_builtins(app[ENGINE].kv_cache.stats())
    split = {"split": app[SPLIT].stats()} if SPLIT in app else {}
    return reply(request, {**app[ENGINE].stats(), **app[METRICS].counts(), **sessions, "kv_cache": kv_cache, **split})


async def _verify(request: web.Request) -> web.Response:
    return reply(request, await _round(request, await read(request, VerifyRequest)))


async def _verify_batch(request: web.Request) -> web.Response:
    body = await read(request, VerifyBatchRequest)
    if not 0 < len(body.requests) <= MAX_BATCH:
        raise RequestError(f"requests takes 1 to {MAX_BATCH} rounds", param="requests")
    async with asyncio.TaskGroup() as group:
        items = [group.create_task(_item(request, item)) for item in body.requests]
    return reply(request, VerifyBatchResponse([item.result() for item in items]))


async def _item(request: web.Request, body: VerifyRequest) -> VerifyBatchItem:
    """One round of a batch; its failure does not affect the others."""
    try:
        return VerifyBatchItem(response=await _round(request, body))
    except FrameworkError as error:
        return VerifyBatchItem(error=ErrorObject(error.message, error.type, error.param, error.code))


async def _round(request: web.Request, body: VerifyRequest) -> VerifyResponse:
    app = request.app
    await app[TOKENIZER].check(body.vocabulary)
    current_priority.set(body.priority)
    begun = body.prefix_length > 0 or request_cost.has_begun(len(body.new_token_ids), body.sampling)
    with _work(app, request_cost.of_round(body), begun):
        response = await app[VERIFIER].verify_draft(body, request[REQUEST_ID], tenant_of(request, body.tenant))
    drawn, seconds = len(response.token_ids), response.latency_ms / 1000
    app[METRICS].record_verify(VerifyForm(response.form), response.drafted, response.accepted, drawn, seconds)
    return response


@contextmanager
def _work(app: web.Application, tokens: int, begun: bool = False) -> Iterator[None]:
    """Around work that waits for the engine and may grow to `tokens`; raises OverloadedError or EngineError."""
    with app[SUPERVISOR].using(), app[ADMISSION].admit(tokens, begun=begun):
        yield


def _record_stream(app: web.Application, answer: ContinuousAnswer) -> None:
    app[METRICS].record_stream(answer.progress.drafted, answer.progress.accepted, answer.drawn)
