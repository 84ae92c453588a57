"""The id of the request that the running task serves; what it asks of other servers goes out under the same id."""

from contextvars import ContextVar

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""Set by the server's middleware for each request, inherited by the tasks that serve it; empty outside of one."""
