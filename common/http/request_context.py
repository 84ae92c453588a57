"""Keeps the id and tenant of the request being served; sends the id and its trace context on to other servers."""

import re
from contextvars import ContextVar

from common.protocol.codec import REQUEST_ID_PATTERN
from common.tracing.context import current_traceparent

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""Set by the server's middleware for each request, inherited by the tasks that serve it; empty outside of a request."""

current_tenant: ContextVar[str] = ContextVar("current_tenant", default="")
"""The name of the request's API key (see `common.http.messages.TENANT`); empty without keys, and outside of a request.

What is kept for later requests is kept for those of the same tenant only.
"""

current_priority: ContextVar[int] = ContextVar("current_priority", default=0)
"""The request's priority, as vLLM has it: lower is earlier; above 0, it waits until no other one does."""


def outgoing_priority() -> int:
    """The priority of calls to a cloud: whether it is a batch. Other ones order the requests of this server's keys."""
    return int(current_priority.get() > 0)


def valid_request_id(given: str) -> str:
    """The `X-Request-Id` that a client gave, if a log can show it as one word; else an empty string."""
    return given if re.match(REQUEST_ID_PATTERN, given) else ""


def outgoing_headers() -> dict[str, str]:
    """The headers of a call to another server that name the running request; those without a value are left out."""
    headers = {"X-Request-Id": current_request_id.get(), "traceparent": current_traceparent.get()}
    return {name: value for name, value in headers.items() if value}
