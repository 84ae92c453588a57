"""The id and the W3C trace of the request that the running task serves; what it asks of other servers carries both."""

import re
from contextvars import ContextVar

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""Set by the server's middleware for each request, inherited by the tasks that serve it; empty outside of one."""

current_traceparent: ContextVar[str] = ContextVar("current_traceparent", default="")
"""The request's valid `traceparent`; empty when it came with none, since a server that starts no trace invents none."""

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context: version, trace id, parent id, flags."""


def valid_traceparent(given: list[str]) -> str:
    """The one valid value among the request's `traceparent` headers, else an empty string."""
    return given[0] if len(given) == 1 and TRACEPARENT.fullmatch(given[0]) else ""


def outgoing_headers() -> dict[str, str]:
    """What a call to another server, made for the running request, says about it."""
    said = {"X-Request-Id": current_request_id.get(), "traceparent": current_traceparent.get()}
    return {name: value for name, value in said.items() if value}
