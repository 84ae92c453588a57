"""Keeps the W3C trace context of the request being served, for calls to other servers and for log lines."""

import logging
import re
from contextvars import ContextVar

from common.errors import shortened

current_traceparent: ContextVar[str] = ContextVar("current_traceparent", default="")
"""The `traceparent` of the innermost span; the request's own while tracing is off; empty where there is none."""

TRACEPARENT_PATTERN = r"^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z"
"""W3C Trace Context: version, trace id, parent id, flags."""


def valid_traceparent(given: list[str]) -> str:
    """The one valid value among the request's `traceparent` headers, else an empty string."""
    return given[0] if len(given) == 1 and re.match(TRACEPARENT_PATTERN, given[0]) else ""


def current_trace_id() -> str:
    """32 hexadecimal digits; empty where there is no trace."""
    return current_traceparent.get()[3:35]


class TracedFormatter(logging.Formatter):
    """Ends each line that is logged for a request of a trace with the trace's id."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line, trace_id = super().formatMessage(record), current_trace_id()
        return f"{line}, trace_id={trace_id}" if trace_id else line


class ShortLines(logging.Filter):
    """Shortens what is logged with a client's value in it: no client can fill a disk with a few requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if (short := shortened(line)) is not line:
            record.msg, record.args = short, None
        return True
