"""Wraps every request handler: logging and metrics, error replies, refusal while the server stops."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web
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
from common.http.messages import EXCHANGE, REQUEST_ID, TENANT, Exchange, client_error, error_object, reply
from common.http.metrics import HttpMetrics, RequestOutcome
from common.http.patience import CALL_ID_HEADER, CALL_ROUTE
from common.http.request_context import (
    current_request_id,
    current_tenant,
    current_traceparent,
    valid_request_id,
    valid_traceparent,
)

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PROBES = ("/health", "/ready", "/metrics", CALL_ROUTE)
"""Requested every few seconds by monitoring: logged only at level DEBUG."""
UNKNOWN_ROUTE = "other"


def observe(metrics: HttpMetrics) -> Middleware:
    """A middleware that sets each request's id and trace context, and counts and logs it when it ends."""

    @web.middleware
    async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
        _set_context(request)
        outcome, status = RequestOutcome.CANCELLED, 499  # nginx's status for a client that disconnected
        try:
            with request.app[IN_FLIGHT].track(request.headers.get(CALL_ID_HEADER, "")):
                response = await handler(request)
            outcome, status = _outcome(request, response), response.status
            return response
        except ConnectionError:
            raise  # the client disconnected
        except Exception:
            outcome, status = RequestOutcome.FAILED, 500
            raise
        finally:
            _report(request, metrics, outcome, status)

    return observed


def _set_context(request: web.Request) -> None:
    request[REQUEST_ID] = valid_request_id(request.headers.get("X-Request-Id", "")) or uuid.uuid4().hex
    request[TENANT] = ""
    request[EXCHANGE] = Exchange()
    current_request_id.set(request[REQUEST_ID])
    current_tenant.set("")  # requests over one connection share a context
    current_traceparent.set(valid_traceparent(request.headers.getall("traceparent", [])))


def _outcome(request: web.Request, response: web.StreamResponse) -> RequestOutcome:
    if isinstance(response, web.Response) and isinstance(response.body, bytes):
        request[EXCHANGE].record_sent(len(response.body))
    if request[EXCHANGE].failed or response.status >= 500:
        return RequestOutcome.FAILED
    if response.status == OverloadedError.status:
        return RequestOutcome.OVERLOADED
    return RequestOutcome.REFUSED if response.status >= 400 else RequestOutcome.OK


def _report(request: web.Request, metrics: HttpMetrics, outcome: RequestOutcome, status: int) -> None:
    exchange, route = request[EXCHANGE], route_of(request)
    seconds = time.perf_counter() - exchange.began
    first = None if exchange.first_byte is None else exchange.first_byte - exchange.began
    metrics.observe(route, outcome, seconds, first, exchange.bytes_in, exchange.bytes_out)
    log.log(
        logging.DEBUG if route in PROBES else logging.INFO,
        "%s %s %d %s %.1f ms, %d bytes in, %d out, request %s, trace %s",
        request.method,
        route,
        status,
        outcome,
        seconds * 1000,
        exchange.bytes_in,
        exchange.bytes_out,
        request[REQUEST_ID],
        current_traceparent.get() or "none",
    )


def route_of(request: web.Request) -> str:
    """The registered pattern of the request's route, never the client's own path."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else UNKNOWN_ROUTE


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every failure into OpenAI's error object. Messages of 4xx errors are not logged: they quote bodies."""
    try:
        return await handler(request)
    except FrameworkError as error:
        failure, status = error, error.status
    except web.HTTPNotFound:
        failure, status = NotFoundError(f"no such route: {request.method} {request.path}"), 404
    except web.HTTPException as error:
        failure, status = RequestError(f"{error.reason}: {request.method} {request.path}"), error.status
    except (Exception, asyncio.CancelledError) as error:
        if request.transport is None or request.transport.is_closing() or request.writer.output_size:
            raise  # the client disconnected, or the response has begun: no error object can be sent
        failure = client_error(request, error)
        status = failure.status
    if status >= 500:
        level = logging.DEBUG if route_of(request) in PROBES else logging.WARNING
        log.log(level, "request %s: %d %s", request[REQUEST_ID], status, failure.message)
    failure.__traceback__ = None  # it would keep this frame, and with it the body, until a later garbage collection
    response = reply(request, error_object(failure), status)
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
