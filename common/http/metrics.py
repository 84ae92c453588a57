"""Counts a server's HTTP requests for Prometheus; labels never hold text from clients."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import cache

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds."""


class RequestOutcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"
    """A 4xx other than 429."""
    OVERLOADED = "overloaded"
    """A 429."""
    FAILED = "failed"
    """A 5xx, or an error event in a stream."""
    CANCELLED = "cancelled"
    """The client disconnected."""


class HttpMetrics:
    """Request metrics by route (the registered pattern) on `registry`; `in_flight` is called at each scrape."""

    def __init__(self, registry: CollectorRegistry, in_flight: Callable[[], int]) -> None:
        requests = Counter(
            "edgecloud_http_requests", "HTTP requests by outcome.", ["route", "outcome"], registry=registry
        )
        seconds = Histogram(
            "edgecloud_http_request_seconds",
            "Seconds per request.",
            ["route"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        first_byte = Histogram(
            "edgecloud_time_to_first_byte_seconds",
            "Seconds until the first byte of the answer.",
            ["route"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        bytes_in = Counter("edgecloud_http_bytes_in", "Bytes of bodies received.", ["route"], registry=registry)
        bytes_out = Counter("edgecloud_http_bytes_out", "Bytes of bodies sent.", ["route"], registry=registry)
        gauge = Gauge("edgecloud_http_requests_in_flight", "HTTP requests being answered.", registry=registry)
        gauge.set_function(in_flight)
        # Looking a series up costs more than counting; a full server refuses hundreds of requests a second.
        self._requests = cache(requests.labels)
        self._bytes_in, self._bytes_out = cache(bytes_in.labels), cache(bytes_out.labels)
        self._seconds, self._first_byte = cache(seconds.labels), cache(first_byte.labels)

    def observe(
        self,
        route: str,
        outcome: RequestOutcome,
        seconds: float,
        first_byte: float | None,
        bytes_in: int,
        bytes_out: int,
    ) -> None:
        """Counts one finished request; `first_byte` is in seconds since its start, None if nothing was sent."""
        self._requests(route, outcome.value).inc()
        self._seconds(route).observe(seconds)
        if first_byte is not None:
            self._first_byte(route).observe(first_byte)
        self._bytes_in(route).inc(bytes_in)
        self._bytes_out(route).inc(bytes_out)


def metrics_page(registry: CollectorRegistry) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler for GET /metrics: `registry`, then the default registry of vLLM and the Python process.

    `?name[]=NAME`, which may be repeated, asks for these samples only, as in other exporters.
    """

    async def page(request: web.Request) -> web.Response:
        names = request.query.getall("name[]", [])
        registries = [one.restricted_registry(names) if names else one for one in (registry, REGISTRY)]
        body = b"".join(map(generate_latest, registries))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return page
