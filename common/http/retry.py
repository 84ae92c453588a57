"""The one rule of what is asked again: what, how often, how soon. Knows the failures of a connection, and no HTTP.

A connection that could not be made has done nothing: it is tried again for whatever was to be asked. One that broke may
have done all of it: only what is safe to repeat is asked again. A deadline that has passed and an answer that is an
error are never tried again here: the time is spent, and the server has said what it has to say. There are at most
`max_retries` repeats, each after a pause that doubles, with jitter, and all together end at the call's total deadline.
"""

from collections.abc import AsyncIterator

import stamina
from stamina.instrumentation import set_on_retry_hooks

from common.errors import EndpointError

set_on_retry_hooks(())  # its own warning names no server; ours, and the metrics, do

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 1.0
JITTER = 0.05
"""Seconds; so that edges which lost the same cloud do not come back to it together."""

SAFE = frozenset({"/draft", "/tokenize", "/detokenize", "/verify"})
"""Posts that may be done twice: the first three change nothing, and each verify carries an `idempotency_key`, under
which the cloud answers again what it answered. Generation is not among them: twice is twice the work."""


class Unreachable(EndpointError):
    """No connection could be made, so nothing was done there."""


class Broken(EndpointError):
    """The connection broke while it was used: whether the work was done is not known."""


def may_repeat(error: Exception, method: str, path: str) -> bool:
    """Whether a call that failed with `error` may be made again."""
    if isinstance(error, Broken):
        return method == "GET" or path in SAFE
    return isinstance(error, Unreachable)


def attempts(method: str, path: str, max_retries: int) -> AsyncIterator[stamina.Attempt]:
    """The attempts of one call: `async for attempt in attempts(...): with attempt: ...`."""
    return stamina.retry_context(
        on=lambda error: may_repeat(error, method, path),
        attempts=1 + max_retries,
        timeout=None,
        wait_initial=FIRST_PAUSE,
        wait_max=LONGEST_PAUSE,
        wait_jitter=JITTER,
    ).__aiter__()
