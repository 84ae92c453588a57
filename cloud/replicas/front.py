"""Builds the front of several replicas: the cloud's routes, answered by a replica, and what it says of them all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import aiohttp
import msgspec
from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from cloud.replicas.fleet import Fleet
from cloud.replicas.merging import merged_metrics, merged_stats
from cloud.replicas.relay import RequestRelay, keys_of
from cloud.replicas.replica import Replica
from cloud.replicas.split_relay import relay_split
from cloud.replicas.stream_relay import relay_stream
from common.config_values import ServerConfig
from common.http.messages import reply
from common.http.metrics import metrics_page
from common.http_server import FATAL, WORKS_ON, make_app
from common.protocol import codec

FLEET = web.AppKey("FLEET", Fleet)
RELAYED = ("/verify", "/verify/batch", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
"""Routes with a name of their own in metrics and logs; any other path is passed on, too."""
REPLY_SECONDS = 2.0
"""How long a replica may take for its part of /stats and /metrics; a slower one is left out."""


def build_app(fleet: Fleet, config: ServerConfig) -> web.Application:
    """The front's application; it owns `fleet`, whose replicas it starts with the server and ends at its end."""
    registry = CollectorRegistry()
    app = make_app(config, registry, metrics=partial(_metrics, metrics_page(registry)))
    relay = RequestRelay(fleet)
    app[FLEET] = fleet
    app[WORKS_ON] = relay.works_on
    app.cleanup_ctx.append(_own_fleet)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/stats", _stats)
    app.router.add_get("/stream", partial(relay_stream, fleet=fleet))
    app.router.add_get("/split", partial(relay_split, fleet=fleet))
    for path in RELAYED:
        app.router.add_route(hdrs.METH_ANY, path, relay.handle)
    app.router.add_route(hdrs.METH_ANY, "/{path:.*}", relay.handle)
    return app


async def _own_fleet(app: web.Application) -> AsyncIterator[None]:
    fleet = app[FLEET]
    async with fleet:
        fleet.failed.add_done_callback(lambda failed: app[FATAL].set_exception(failed.exception() or AssertionError()))
        yield


async def _ready(request: web.Request) -> web.Response:
    request.app[FLEET].check_ready()
    return reply(request, {"status": "ready"})


async def _stats(request: web.Request) -> web.Response:
    """What the replicas tell, added up, and what each of them tells."""
    fleet = request.app[FLEET]
    found = await _from_all(fleet, partial(_get_stats, request))
    replicas = {one.name: {**found.get(one.name, {}), **one.stats()} for one in fleet.replicas}
    held = msgspec.to_builtins(fleet.index.stats())
    return reply(request, {**merged_stats(found.values()), "replicas": replicas, "followed": held})


async def _metrics(own: Callable[[web.Request], Awaitable[web.Response]], request: web.Request) -> web.Response:
    mine = (await own(request)).body
    assert isinstance(mine, bytes)
    pages = {"front": mine.decode(), **await _from_all(request.app[FLEET], partial(_get_text, request, "/metrics"))}
    return web.Response(body=merged_metrics(pages), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _from_all(fleet: Fleet, ask: Callable[[Replica], Coroutine[Any, Any, Any]]) -> dict[str, Any]:
    """The replies of all replicas that answer in time, by their names."""
    running = [one for one in fleet.replicas if one.running]
    replies = await asyncio.gather(*(_in_time(ask(one)) for one in running))
    return {one.name: told for one, told in zip(running, replies, strict=True) if told is not None}


async def _in_time(asking: Coroutine[Any, Any, Any]) -> Any:
    try:
        async with asyncio.timeout(REPLY_SECONDS):
            return await asking
    except (TimeoutError, aiohttp.ClientError):
        return None


async def _get_text(request: web.Request, path: str, replica: Replica) -> str | None:
    query = f"?{request.query_string}" if request.query_string else ""
    async with replica.http_session().get(f"{replica.url}{path}{query}", headers=keys_of(request)) as response:
        return await response.text() if response.status == 200 else None


async def _get_stats(request: web.Request, replica: Replica) -> dict[str, Any] | None:
    text = await _get_text(request, "/stats", replica)
    return None if text is None else codec.decode(text.encode(), dict[str, Any])
