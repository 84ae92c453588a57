"""Turns a server's error replies, and lost connections to it, into the project's errors."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import msgspec

from common.errors import (
    ContextLengthError,
    EndpointError,
    GrammarError,
    NotFoundError,
    PrefixUnknown,
    RequestError,
    VocabularyError,
)
from common.http.patience import Call
from common.http.retry import ConnectionBroken, NoAnswer, NotListening, Unreachable
from common.protocol import codec


class Busy(EndpointError):
    """The server answered 429: it works but has no capacity now, so another one may answer sooner."""


class WrongProtocol(EndpointError):
    """The peer is not a server of this project, or speaks another protocol version."""


class ErrorBody(msgspec.Struct):
    """The fields of OpenAI's error object that this client reads."""

    message: str
    code: str | None = None
    param: str | None = None


class ErrorReply(msgspec.Struct):
    """The body of every reply with a status of 400 or above, sent by both servers."""

    error: ErrorBody


def error_from_reply(url: str, status: int, body: bytes, content_type: str) -> EndpointError | RequestError:
    """The error that a reply stands for.

    RequestError (or a child) for a 4xx other than 401, 408 and 429; EndpointError (or a child) for everything else.
    """
    try:
        error = codec.decode(body, ErrorReply, content_type).error
    except RequestError:
        return EndpointError(f"{url} answered {status}")
    kinds: dict[str | None, type[RequestError | EndpointError]] = {
        kind.code: kind for kind in (PrefixUnknown, ContextLengthError, GrammarError, NotFoundError, VocabularyError)
    }
    if error.code in kinds:
        return kinds[error.code](error.message, error.param)
    if status == 429:
        return Busy(f"{url} answered 429: {error.message}")
    if 400 <= status < 500 and status not in (401, 408):
        return RequestError(error.message, error.param)
    return EndpointError(f"{url} answered {status}: {error.message}")


def check_protocol(url: str, status: int, version: str | None) -> None:
    """Raises WrongProtocol unless `version`, the reply's `codec.PROTOCOL_HEADER`, is this program's.

    An error reply without a version passes: it may come from a proxy, and is reported as an error anyway.
    """
    if version == codec.PROTOCOL or (version is None and status >= 400):
        return
    speaks = f"speaks protocol {version[:20]!r}" if version else "is no server of this project"
    raise WrongProtocol(f"{url} {speaks}, this side speaks {codec.PROTOCOL!r}: run the same version on both")


@contextmanager
def named_losses(url: str, connect_seconds: float, call: Call) -> Iterator[None]:
    """Around one exchange with a server; raises EndpointError (or a child) where no reply comes, which counts."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        call.spent.failures += 1
        raise EndpointError(f"cannot reach {url} within {connect_seconds:g} s") from error
    except aiohttp.ClientConnectorError as error:
        call.spent.failures += 1
        raise unreachable(url, error) from error
    except TimeoutError as error:
        call.spent.failures += 1
        raise no_answer(url, call.patience) from error
    except aiohttp.ClientError as error:
        call.spent.failures += 1
        raise ConnectionBroken(f"{url} broke the connection ({type(error).__name__})") from error


def unreachable(url: str, error: aiohttp.ClientConnectorError) -> Unreachable:
    """Why no connection could be made, in the system's words."""
    number = error.os_error.errno or 0  # negative where a name could not be resolved
    reason = os.strerror(number) if number > 0 else error.os_error.strerror or str(error.os_error)
    kind = NotListening if number == errno.ECONNREFUSED else Unreachable
    return kind(f"cannot reach {url} ({reason}): is that server running?")


def no_answer(url: str, seconds: float) -> NoAnswer:
    return NoAnswer(f"{url} did not answer within {seconds:g} s")
