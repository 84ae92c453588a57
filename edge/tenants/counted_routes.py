"""Routes whose requests count against the limits of their API key, and the headers that tell a client of them."""

from aiohttp import web
from aiohttp.typedefs import Handler

from common.http.messages import TENANT
from edge.tenants.quotas import Quotas

QUOTAS = web.AppKey("QUOTAS", Quotas)
COUNTED = web.RequestKey("COUNTED", bool)
"""Set on the requests that count."""


def counted(handler: Handler) -> Handler:
    """The handler, which runs only for requests within the limits; others end with RateLimitError."""

    async def limited(request: web.Request) -> web.StreamResponse:
        request[COUNTED] = True
        with request.app[QUOTAS].request(request[TENANT]):
            return await handler(request)

    return limited


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: what is left of the key's limits; of a stream, before its answer is counted."""
    if COUNTED in request:
        response.headers.update(request.app[QUOTAS].headers(request[TENANT]))
