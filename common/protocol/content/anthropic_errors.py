"""Anthropic's error object and error event, of POST /v1/messages on both servers."""

from typing import Any

from common.errors import FrameworkError
from common.protocol import codec

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}
"""Anthropic's names by status; of the others, those below 500 are invalid requests."""


def error_body(error: FrameworkError) -> dict[str, Any]:
    """Anthropic's error object; with OpenAI's fields, which name the wrong field of the request."""
    kind = TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    message = error.message.encode(errors="replace").decode()  # a message may quote input with lone surrogates
    return {"type": "error", "error": {"message": message, "type": kind, "param": error.param, "code": error.code}}


def error_event(error: FrameworkError) -> bytes:
    """The event that ends a stream with an error."""
    return b"event: error\ndata: " + codec.encode(error_body(error)) + b"\n\n"
