"""Decides who may ask: API keys, and which web pages' scripts; answers browsers' CORS preflights."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import lru_cache

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from common.config_values import Secret
from common.errors import AuthenticationError, ForbiddenError
from common.http.messages import REQUEST_ID, TENANT, route_of
from common.http.request_context import current_tenant
from common.protocol.codec import JSON, MSGPACK, PROTOCOL, PROTOCOL_HEADER

PUBLIC_ROUTES = ("/health", "/ready")
"""Answered without an API key."""
RATE_LIMITS = [f"X-RateLimit-{what}-{of}" for of in ("Requests", "Tokens") for what in ("Limit", "Remaining", "Reset")]
EXPOSED_HEADERS = ", ".join(["X-Request-Id", "Retry-After", *RATE_LIMITS])
"""What a page's script may read of a response."""


def authenticate(keys: Iterable[Secret], public: Collection[str] = ()) -> Middleware:
    """A middleware that raises AuthenticationError unless a request has one of `keys`.

    As `Authorization: Bearer KEY`, or `X-Api-Key: KEY`, which Anthropic's clients send. Sets the request's TENANT, and
    `current_tenant` for the tasks that serve it. `public` names more routes, by the registered pattern, that are
    answered without a key.
    """
    digests, public = [_digest(key.reveal()) for key in keys], {*PUBLIC_ROUTES, *public}

    @web.middleware
    async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
        if route_of(request) in public and request.method in (hdrs.METH_GET, hdrs.METH_HEAD):
            return await handler(request)
        key = _shown_key(request)
        given, found = _digest(key or ""), False
        for digest in digests:  # always all of them: the time taken must not tell which one is close
            found |= hmac.compare_digest(given, digest)
        if key is None or not found:
            raise AuthenticationError("give a valid API key: 'Authorization: Bearer KEY'")
        request[TENANT] = _name_of(given)
        current_tenant.set(request[TENANT])
        return await handler(request)

    return authenticated


def _shown_key(request: web.Request) -> str | None:
    """The key that a request shows; None if it shows none."""
    if hdrs.AUTHORIZATION not in request.headers:
        return request.headers.get("X-Api-Key")
    scheme, _, key = request.headers[hdrs.AUTHORIZATION].partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def tenant_name(key: Secret) -> str:
    """The TENANT of requests that show `key`."""
    return _name_of(_digest(key.reveal()))


def _name_of(digest: bytes) -> str:
    return digest[:8].hex()


def _digest(key: str) -> bytes:
    """A digest of fixed length, so that comparing takes the same time for any key; its start names the tenant."""
    return hashlib.blake2b(key.encode(errors="surrogateescape"), person=b"edgecloud-tenant").digest()


def guard_against_pages(host: str, origins: Iterable[str]) -> Middleware:
    """A middleware that raises ForbiddenError for what a browser sends for pages of other origins than `origins`.

    A page can open WebSockets to any server, and send bodies of some types, without a preflight. And it can give its
    own name this machine's address (DNS rebinding), so that its origin seems to be the server's: a server whose `host`
    is loopback takes only names of this machine, addresses, and the names of `origins`.
    """
    allowed = frozenset(origins)
    names = {_name(origin.partition("://")[2]) for origin in allowed}
    local = _is_local(host) and "*" not in allowed

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        addressed = request.headers.get(hdrs.HOST, "")
        name = _name(addressed)
        if local and not (name in names or _is_local(name) or _is_address(name)):
            hint = "use localhost, or name the page's origin in the server's cors_origins"
            raise ForbiddenError(f"this server does not go by the name {name[:100]!r}: {hint}")
        origin = request.headers.get(hdrs.ORIGIN)
        foreign = origin is not None and origin.partition("://")[2].lower() != addressed.lower()
        if foreign and _needs_no_preflight(request) and not _allowed(request, allowed):
            raise ForbiddenError("pages of this origin may not ask: cors_origins of this server names those that may")
        return await handler(request)

    return guarded


def _needs_no_preflight(request: web.Request) -> bool:
    """Whether a browser may send this for any page without asking first, and it may have an effect."""
    if request.headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket":
        return True
    return request.method == hdrs.METH_POST and request.content_type not in (JSON, MSGPACK)


@lru_cache
def _name(authority: str) -> str:
    """The host in `host:port`, in lower case and without the brackets of an IPv6 address."""
    return re.sub(r":\d*$", "", authority.strip().lower()).strip("[]").rstrip(".")


@lru_cache
def _is_local(name: str) -> bool:
    """Whether `name` always is this machine itself."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


@lru_cache
def _is_address(name: str) -> bool:
    """Whether `name` is an IP address, which no name server can change; or empty, as no browser sends it."""
    try:
        return not name or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


HEADER_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z, -]*")
"""What a preflight may ask for."""


def cors(origins: Iterable[str]) -> Middleware:
    """A middleware that answers preflights from `origins` ("*": any) before keys are checked.

    All headers are allowed that the page asks for: clients have headers of their own, and keys decide who may ask.
    """
    allowed = frozenset(origins)

    @web.middleware
    async def preflighted(request: web.Request, handler: Handler) -> web.StreamResponse:
        preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not (preflight and _allowed(request, allowed)):
            return await handler(request)
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: wanted if HEADER_NAMES.fullmatch(wanted) else "",
            hdrs.ACCESS_CONTROL_MAX_AGE: "600",
            hdrs.VARY: hdrs.ACCESS_CONTROL_REQUEST_HEADERS,
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
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)

    return add


def _allowed(request: web.Request, origins: frozenset[str]) -> bool:
    origin = request.headers.get(hdrs.ORIGIN)
    return origin is not None and ("*" in origins or origin in origins)
