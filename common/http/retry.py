"""Decides which failed calls are retried, how often and after which pause.

If no connection could be made, nothing was done: any call is retried. If a connection broke, the server may have done
the work: only idempotent calls are retried. Missed deadlines and error replies are never retried here. There are at
most `max_retries` retries, each after a pause that doubles, with jitter; the call's total deadline ends them.
"""

from collections.abc import AsyncIterator

import stamina
from stamina.instrumentation import set_on_retry_hooks

from common.errors import EndpointError

set_on_retry_hooks(())  # its warnings name no server; our log lines and metrics do

FIRST_PAUSE_SECONDS = 0.02
MAX_PAUSE_SECONDS = 1.0
JITTER_SECONDS = 0.05
"""Spreads the retries of edges that lost the same cloud."""

IDEMPOTENT_POSTS = frozenset({"/draft", "/tokenize", "/detokenize", "/verify"})
"""Posts that may be repeated: the first three change nothing, and the cloud answers a repeated verify from the
`idempotency_key`. Generation is not included: repeating it doubles the work."""


class Unreachable(EndpointError):
    """No connection could be made, so the server has done nothing."""


class NotListening(Unreachable):
    """Nothing listens at the address: the server has not started, or not yet."""


class NoAnswer(EndpointError):
    """No reply came in time; a server that starts takes connections before it answers."""


class ConnectionBroken(EndpointError):
    """The connection broke while in use; the server may have done the work."""


def may_repeat(error: Exception, method: str, path: str) -> bool:
    """Whether a call that failed with `error` may be retried."""
    if isinstance(error, ConnectionBroken):
        return method == "GET" or path in IDEMPOTENT_POSTS
    return isinstance(error, Unreachable)


def attempts(method: str, path: str, max_retries: int) -> AsyncIterator[stamina.Attempt]:
    """The attempts of one call: `async for attempt in attempts(...): with attempt: ...`."""
    return stamina.retry_context(
        on=lambda error: may_repeat(error, method, path),
        attempts=1 + max_retries,
        timeout=None,
        wait_initial=FIRST_PAUSE_SECONDS,
        wait_max=MAX_PAUSE_SECONDS,
        wait_jitter=JITTER_SECONDS,
    ).__aiter__()
