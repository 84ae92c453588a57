"""Wraps every request handler: logging and metrics, error replies, refusal while the server stops."""

import asyncio
import functools
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from common.errors import (
    AuthenticationError,
    FrameworkError,
    NotFoundError,
    OverloadedError,
    RequestError,
    StoppingError,
)
from common.http.in_flight import IN_FLIGHT
from common.http.messages import (
    ERROR_OBJECT,
    EXCHANGE,
    REQUEST_ID,
    TENANT,
    Exchange,
    client_error,
    error_object,
    reply,
    route_of,
)
from common.http.metrics import HttpMetrics, RequestOutcome
from common.http.patience import CALL_ID_HEADER, CALL_ROUTE
from common.http.request_context import current_priority, current_request_id, current_tenant, valid_request_id
from common.tracing.context import current_traceparent, valid_traceparent
from common.tracing.spans import NO_SPAN, Span, SpanKind, span

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
AnyHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
REFUSAL_SECONDS = 1.0
"""Between two log lines of refusals by a full server, which may be thousands a second."""
PROBES = ("/health", "/ready", "/metrics", "/stats", CALL_ROUTE)
"""Requested every few seconds by monitoring: logged only at level DEBUG."""


def observe(metrics: HttpMetrics) -> Middleware:
    """A middleware that sets each request's id and trace context, and traces, counts and logs it until it ends."""
    refusals = RefusalLines()

    @web.middleware
    async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
        _set_context(request)
        outcome, status = RequestOutcome.CANCELLED, 499  # nginx's status for a client that disconnected
        with _span_of(request) as traced:
            try:
                with request.app[IN_FLIGHT].track(request.headers.get(CALL_ID_HEADER, "")):
                    response = await handler(request)
                outcome, status = _outcome(request, response), response.status
                return response
            except ConnectionError:  # the client disconnected; raised again, it would be logged as our fault
                return web.Response(status=499)
            except Exception:
                outcome, status = RequestOutcome.FAILED, 500
                raise
            finally:
                if request[EXCHANGE].complete and outcome is RequestOutcome.CANCELLED:
                    outcome, status = RequestOutcome.OK, 200
                _count(request, metrics, outcome)
                _log(request, outcome, status, refusals)
                _trace(traced, request, outcome, status)

    return observed


def _span_of(request: web.Request) -> Span:
    """None of a probe, nor of a WebSocket, which carries many answers with spans of their own."""
    route = route_of(request)
    if route in PROBES or hdrs.UPGRADE in request.headers:
        return NO_SPAN
    return span(f"{request.method} {route}", SpanKind.SERVER)


def _trace(traced: Span, request: web.Request, outcome: RequestOutcome, status: int) -> None:
    http = {"http.request.method": request.method, "http.route": route_of(request), "url.scheme": request.scheme}
    traced.set(http | {"http.response.status_code": status}, request_id=request[REQUEST_ID], outcome=outcome.value)
    if outcome is RequestOutcome.FAILED:
        traced.fail(str(status))


def _set_context(request: web.Request) -> None:
    request[REQUEST_ID] = valid_request_id(request.headers.get("X-Request-Id", "")) or uuid.uuid4().hex
    request[TENANT] = ""
    request[EXCHANGE] = Exchange()
    current_request_id.set(request[REQUEST_ID])
    current_tenant.set("")  # requests over one connection share a context
    current_priority.set(0)
    current_traceparent.set(valid_traceparent(request.headers.getall("traceparent", [])))


def _outcome(request: web.Request, response: web.StreamResponse) -> RequestOutcome:
    if isinstance(response, web.Response) and isinstance(response.body, bytes):
        request[EXCHANGE].record_sent(len(response.body))
    if request[EXCHANGE].failed or response.status >= 500:
        return RequestOutcome.FAILED
    if response.status == OverloadedError.status:
        return RequestOutcome.OVERLOADED
    return RequestOutcome.REFUSED if response.status >= 400 else RequestOutcome.OK


def _count(request: web.Request, metrics: HttpMetrics, outcome: RequestOutcome) -> None:
    exchange = request[EXCHANGE]
    first = None if exchange.first_byte is None else exchange.first_byte - exchange.began
    metrics.observe(route_of(request), outcome, exchange.seconds, first, exchange.bytes_in, exchange.bytes_out)


class RefusalLines:
    """Lets the log line of one refusal through every REFUSAL_SECONDS, and counts the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = -math.inf
        self._untold = 0

    def untold(self) -> int | None:
        """How many before this one have no line; None: this one has none either."""
        if (now := self._clock()) < self._next:
            self._untold += 1
            return None
        self._next, untold, self._untold = now + REFUSAL_SECONDS, self._untold, 0
        return untold


def _log(request: web.Request, outcome: RequestOutcome, status: int, refusals: RefusalLines) -> None:
    untold = refusals.untold() if outcome is RequestOutcome.OVERLOADED else 0
    if untold is None:
        return
    exchange, route = request[EXCHANGE], route_of(request)
    log.log(
        logging.DEBUG if route in PROBES else logging.INFO,
        "%s %s %d %s %.1f ms, %d bytes in, %d out, request %s%s",
        request.method,
        route,
        status,
        outcome,
        exchange.seconds * 1000,
        exchange.bytes_in,
        exchange.bytes_out,
        request[REQUEST_ID],
        f"; {untold} more were refused before it" if untold else "",
    )


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every failure into OpenAI's error object, or that of the request's ERROR_OBJECT.

    Messages of 4xx errors are not logged: they quote bodies.
    """
    allow = ""
    try:
        return await handler(request)
    except FrameworkError as error:
        failure, status = error, error.status
    except web.HTTPNotFound:
        failure, status = NotFoundError(f"no such route: {request.method} {request.path}"), 404
    except web.HTTPException as error:
        failure, status = RequestError(f"{error.reason}: {request.method} {request.path}"), error.status
        allow = error.headers.get(hdrs.ALLOW, "")
    except (Exception, asyncio.CancelledError) as error:
        if request.transport is None or request.transport.is_closing() or request.writer.output_size:
            raise  # the client disconnected, or the response has begun: no error object can be sent
        failure = client_error(request, error)
        status = failure.status
    if status >= 500:
        level = logging.DEBUG if route_of(request) in PROBES else logging.WARNING
        log.log(level, "request %s: %d %s", request[REQUEST_ID], status, failure.message)
    failure.__traceback__ = None  # it would keep this frame, and with it the body, until a later garbage collection
    response = reply(request, request.get(ERROR_OBJECT, error_object)(failure), status)
    if allow:
        response.headers[hdrs.ALLOW] = allow
    if isinstance(failure, OverloadedError):
        response.headers["Retry-After"] = str(failure.retry_after)
    if isinstance(failure, AuthenticationError):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(failure, StoppingError):
        response.force_close()
    return response


@web.middleware
async def stopping(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Raises StoppingError while the server stops, for requests over connections that are still open and for /ready."""
    if request.app[IN_FLIGHT].draining.is_set() and route_of(request) not in ("/health", "/metrics", CALL_ROUTE):
        raise StoppingError("the server is stopping")
    return await handler(request)


def with_refused_expectations(handle: AnyHandler) -> AnyHandler:
    """An application's handler, whose middlewares also answer the requests with an `Expect` header that is not known.

    aiohttp refuses those before any middleware: as plain text, without a request id, and neither logged nor counted.
    """

    async def handled(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handle(request)
        except web.HTTPExpectationFailed:
            assert isinstance(request, web.Request), "an application has made it"
            answer: Handler = _refuse_expectation
            for around in reversed(request.app.middlewares):
                answer = functools.partial(around, handler=answer)
            return await answer(request)

    return handled


async def _refuse_expectation(request: web.Request) -> web.StreamResponse:
    raise web.HTTPExpectationFailed(reason="of expectations only 100-continue is known")
