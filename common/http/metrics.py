"""What a server shows Prometheus of its HTTP work, with labels from our own words only. Knows no engine."""

from collections.abc import Awaitable, Callable
from enum import StrEnum

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class RequestOutcome(StrEnum):
    """How a request ended: refused is a 4xx but 429, failed a 5xx or an error event, cancelled: the client left."""

    OK = "ok"
    REFUSED = "refused"
    OVERLOADED = "overloaded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class HttpMetrics:
    """Requests by route (the registered pattern), kept on `registry`; `in_flight` is asked at a scrape."""

    def __init__(self, registry: CollectorRegistry, in_flight: Callable[[], int]) -> None:
        self._requests = Counter(
            "edgecloud_http_requests", "HTTP requests by outcome.", ["route", "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "edgecloud_http_request_seconds", "Seconds per request.", ["route"], buckets=SECONDS, registry=registry
        )
        self._first_byte = Histogram(
            "edgecloud_time_to_first_byte_seconds",
            "Seconds until the first byte of the answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._bytes_in = Counter("edgecloud_http_bytes_in", "Bytes of bodies received.", ["route"], registry=registry)
        self._bytes_out = Counter("edgecloud_http_bytes_out", "Bytes of bodies sent.", ["route"], registry=registry)
        gauge = Gauge("edgecloud_http_requests_in_flight", "HTTP requests being answered.", registry=registry)
        gauge.set_function(in_flight)

    def observe(
        self,
        route: str,
        outcome: RequestOutcome,
        seconds: float,
        first_byte: float | None,
        bytes_in: int,
        bytes_out: int,
    ) -> None:
        """One request that is over; `first_byte` in seconds, None when nothing was sent."""
        self._requests.labels(route, outcome.value).inc()
        self._seconds.labels(route).observe(seconds)
        if first_byte is not None:
            self._first_byte.labels(route).observe(first_byte)
        self._bytes_in.labels(route).inc(bytes_in)
        self._bytes_out.labels(route).inc(bytes_out)


def metrics_page(registry: CollectorRegistry) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler for GET /metrics: `registry`, then what libraries keep on their own (vLLM, and Python's process)."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry) + generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    return page
