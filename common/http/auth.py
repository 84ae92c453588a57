"""Authenticates requests by API key, and answers browsers' CORS preflights."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from common.config_values import Secret
from common.errors import AuthenticationError
from common.http.messages import REQUEST_ID, TENANT
from common.http.request_context import current_tenant
from common.protocol.codec import PROTOCOL, PROTOCOL_HEADER

PUBLIC_PATHS = ("/health", "/ready")
"""Answered without an API key."""


def authenticate(keys: Iterable[Secret]) -> Middleware:
    """A middleware that raises AuthenticationError unless a request has one of `keys` (`Authorization: Bearer KEY`).

    It sets the request's TENANT, and `current_tenant` for the tasks that serve it.
    """
    digests = [_digest(key.reveal()) for key in keys]

    @web.middleware
    async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in PUBLIC_PATHS and request.method == hdrs.METH_GET:
            return await handler(request)
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        given, found = _digest(key.strip()), False
        for digest in digests:  # always all of them: the time taken must not tell which one is close
            found |= hmac.compare_digest(given, digest)
        if scheme.lower() != "bearer" or not found:
            raise AuthenticationError("give a valid API key: 'Authorization: Bearer KEY'")
        request[TENANT] = given[:8].hex()
        current_tenant.set(request[TENANT])
        return await handler(request)

    return authenticated


def _digest(key: str) -> bytes:
    """A digest of fixed length, so that comparing takes the same time for any key; its start names the tenant."""
    return hashlib.blake2b(key.encode(errors="surrogateescape"), person=b"edgecloud-tenant").digest()


def cors(origins: Iterable[str]) -> Middleware:
    """A middleware that answers preflights from `origins` ("*": any) before keys are checked."""
    allowed = frozenset(origins)

    @web.middleware
    async def preflighted(request: web.Request, handler: Handler) -> web.StreamResponse:
        preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not (preflight and _allowed(request, allowed)):
            return await handler(request)
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type, X-Request-Id, traceparent",
            hdrs.ACCESS_CONTROL_MAX_AGE: "600",
        }
        return web.Response(status=204, headers=headers)

    return preflighted


def response_headers(origins: Iterable[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """A handler for `on_response_prepare` that sets the request id, the protocol version and the CORS headers."""
    allowed = frozenset(origins)

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
        response.headers[PROTOCOL_HEADER] = PROTOCOL
        if _allowed(request, allowed):
            origin = "*" if "*" in allowed else request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "X-Request-Id, Retry-After"
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)

    return add


def _allowed(request: web.Request, origins: frozenset[str]) -> bool:
    origin = request.headers.get(hdrs.ORIGIN)
    return origin is not None and ("*" in origins or origin in origins)
