"""What a server's answer says has gone wrong, as our errors. Knows no connection."""

import msgspec

from common.errors import ContextLengthError, EndpointError, PrefixUnknown, RequestError, VocabularyError
from common.protocol import codec


class Busy(EndpointError):
    """The server has no room now: it is well, but another one may answer sooner."""


class WrongProtocol(EndpointError):
    """What answers there is no server of ours, or of another version."""


class ErrorBody(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None


class ErrorReply(msgspec.Struct):
    error: ErrorBody


def refusal(url: str, status: int, body: bytes, content_type: str) -> EndpointError | RequestError:
    """The server's error object as ours: 4xx is our request's fault, everything else the server's."""
    try:
        error = codec.decode(body, ErrorReply, content_type).error
    except RequestError:
        return EndpointError(f"{url} answered {status}")
    kinds: dict[str | None, type[RequestError | EndpointError]] = {
        kind.code: kind for kind in (PrefixUnknown, ContextLengthError, VocabularyError)
    }
    if error.code in kinds:
        return kinds[error.code](error.message, error.param)
    if status == 429:
        return Busy(f"{url} answered 429: {error.message}")
    if 400 <= status < 500 and status not in (401, 408):
        return RequestError(error.message, error.param)
    return EndpointError(f"{url} answered {status}: {error.message}")


def check_protocol(url: str, status: int, said: str | None) -> None:
    """Raises WrongProtocol unless the server `said` ours in `wire.PROTOCOL_HEADER`.

    An error without a version may be some proxy's on the way, and says enough by itself.
    """
    if said == codec.PROTOCOL or (said is None and status >= 400):
        return
    speaks = f"speaks protocol {said[:20]!r}" if said else "is no server of this project"
    raise WrongProtocol(f"{url} {speaks}, this side speaks {codec.PROTOCOL!r}: run the same version on both")
