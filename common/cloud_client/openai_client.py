"""The HTTP client of a server with OpenAI's API that is not of this project."""

from typing import Any

import msgspec

from common.config_schema import HttpClientConfig
from common.config_values import NO_KEY, Secret
from common.errors import ContextLengthError, EndpointError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy
from common.protocol import codec

OVERFLOW = "context_length_exceeded", "exceed_context_size_error"
"""What OpenAI and llama-server call a prompt that is too long."""
OVERFLOW_TEXT = "maximum context length"
"""What vLLM writes of one."""
REFUSALS = 400, 413, 422
"""Statuses that blame the request; with any other the server cannot be used for this answer."""


class OpenAIClient(HTTPClient):
    """Plain JSON calls below a base URL such as `https://HOST/v1`."""

    READY = "/models"
    KEEPS_CONNECTIONS = False
    """llama-server closes some that it said it would keep (3 of 100 calls, four at once), vLLM after 5 seconds, and a
    call that meets that is lost: what generates is not repeated."""

    def __init__(self, base_url: str, config: HttpClientConfig, api_key: Secret = NO_KEY) -> None:
        super().__init__(base_url, config, api_key)
        self.content_type = codec.JSON

    def _should_compress(self, body: bytes) -> bool:
        return False

    def _error(self, status: int, body: bytes, content_type: str) -> EndpointError | RequestError:
        """Servers write errors in several forms: this takes the message from any of them."""
        message, names = _parts(body)
        if OVERFLOW_TEXT in message or any(name in OVERFLOW for name in names):
            return ContextLengthError(message)
        where = f"{self.base_url} answered {status}: {message}".removesuffix(": ")
        if status in REFUSALS:
            return RequestError(where)
        return Busy(where) if status == 429 else EndpointError(where)


def _parts(body: bytes) -> tuple[str, list[Any]]:
    """An error's message, and its code and type."""
    try:
        reply = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return "", []
    error = reply.get("error", reply) if isinstance(reply, dict) else {}
    if not isinstance(error, dict):
        return str(error), []
    return str(error.get("message") or error.get("detail") or ""), [error.get("code"), error.get("type")]
