"""Which requests stay at the edge as a whole: by a field, by a header, by their API key, by tools' results."""

from collections.abc import Iterable
from contextvars import ContextVar

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from common.config_values import Secret
from common.errors import RequestError
from common.http.auth import tenant_name
from common.http.messages import TENANT
from common.protocol.openai import ChatRequest, GenerationRequest
from common.types import Mode

HEADER = "X-Private"
KEY = "Authorization"
OWN_ROLES = frozenset({"system", "developer", "user", "assistant"})
"""Those that write a chat; what has another role comes from a tool, whatever a template calls it."""

_kept_by_caller: ContextVar[str] = ContextVar("kept_by_caller", default="")
"""The header by which the request that is served stays at the edge; empty: by none."""


def observe_privacy(keys: Iterable[Secret]) -> Middleware:
    """A middleware that notes which requests are private: those with `X-Private: true`, or with one of `keys`."""
    tenants = {tenant_name(key) for key in keys}

    @web.middleware
    async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = {value.strip().lower() for value in request.headers.getall(HEADER, ())}
        if not given <= {"true", "false"}:
            raise RequestError(f"{HEADER} is true or false", param=HEADER)
        _kept_by_caller.set(HEADER if "true" in given else KEY if request[TENANT] in tenants else "")
        return await handler(request)

    return observed


def act_for(tenant: str, keys: Iterable[Secret], private: bool = False) -> None:
    """From here on the running task serves this tenant.

    Its requests are private if its key is one of `keys`, or was one when they came: then they are `private`.
    """
    _kept_by_caller.set(KEY if private or tenant in {tenant_name(key) for key in keys} else "")


def kept_by_caller() -> str:
    """The header that says that nothing of the running request leaves the edge; empty if none says so."""
    return _kept_by_caller.get()


def kept_by(body: GenerationRequest) -> str:
    """The field or header that says that nothing of this request leaves the edge; empty if none says so."""
    return "privacy" if body.privacy else "private" if body.private else kept_by_caller()


def refuse_contradiction(body: GenerationRequest) -> None:
    """Raises RequestError for a private request that asks for the cloud alone."""
    if (name := kept_by(body)) and body.mode is Mode.CLOUD_ONLY:
        subject = "the API key keeps all of its requests at the edge, which" if name == KEY else f"{name}"
        raise RequestError(f'{subject} contradicts mode "cloud_only"', param=name)


def has_tool_results(body: GenerationRequest) -> bool:
    """Whether a chat has what a tool has returned."""
    return isinstance(body, ChatRequest) and any(message.role not in OWN_ROLES for message in body.messages)
