"""Keeps the id, W3C trace context and tenant of the request being served; sends the first two on to other servers."""

import re
from contextvars import ContextVar

from common.protocol.codec import REQUEST_ID_PATTERN

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""Set by the server's middleware for each request, inherited by the tasks that serve it; empty outside of a request."""

current_traceparent: ContextVar[str] = ContextVar("current_traceparent", default="")
"""The request's valid `traceparent`, else empty: this server starts no traces of its own."""

current_tenant: ContextVar[str] = ContextVar("current_tenant", default="")
"""The name of the request's API key (see `common.http.messages.TENANT`); empty without keys, and outside of a request.

What is kept for later requests is kept for those of the same tenant only.
"""

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context: version, trace id, parent id, flags."""


def valid_request_id(given: str) -> str:
    """The `X-Request-Id` that a client gave, if a log can show it as one word; else an empty string."""
    return given if re.match(REQUEST_ID_PATTERN, given) else ""


def valid_traceparent(given: list[str]) -> str:
    """The one valid value among the request's `traceparent` headers, else an empty string."""
    return given[0] if len(given) == 1 and TRACEPARENT.fullmatch(given[0]) else ""


def outgoing_headers() -> dict[str, str]:
    """The headers of a call to another server that name the running request; those without a value are left out."""
    headers = {"X-Request-Id": current_request_id.get(), "traceparent": current_traceparent.get()}
    return {name: value for name, value in headers.items() if value}
