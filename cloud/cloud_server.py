"""The cloud's HTTP routes: /verify over our verifier, the OpenAI API over vLLM's own serving objects. Knows no config.

vLLM's objects do the work of the /v1 routes (templates, tools, structured output, checks, streaming); the handlers
here only carry bodies in, and responses, streams and errors out.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
from vllm.exceptions import VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from cloud.draft_verifier import DraftVerifier
from cloud.engine import CloudEngine
from cloud.sessions import SessionTable
from cloud.stream_route import StreamRoute
from common.errors import EngineError, FrameworkError, RequestError
from common.http_server import FATAL, REQUEST_ID, make_app, read, reply, stream
from common.types import VerifyRequest

log = logging.getLogger(__name__)
T = TypeVar("T")

ENGINE = web.AppKey("ENGINE", CloudEngine)
SESSIONS = web.AppKey("SESSIONS", SessionTable)
VERIFIER = web.AppKey("VERIFIER", DraftVerifier)

IGNORED = ("min_p", "logit_bias")
"""Sampling fields that vLLM ignores once it has a speculative config."""


def build_app(engine: CloudEngine) -> web.Application:
    """The cloud server's application; it owns `engine`, starting it beside the open port and closing it at the end."""
    app = make_app()
    app[ENGINE] = engine
    app[SESSIONS] = SessionTable()
    app[VERIFIER] = DraftVerifier(engine, app[SESSIONS])
    app.cleanup_ctx.append(_own_engine)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/stats", _stats)
    app.router.add_post("/verify", _verify)
    StreamRoute(engine).add_to(app)
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _chat_completion)
    app.router.add_post("/v1/completions", _completion)
    app.router.add_post("/tokenize", _tokenize)
    app.router.add_post("/detokenize", _detokenize)
    return app


async def _own_engine(app: web.Application) -> AsyncIterator[None]:
    starting = asyncio.create_task(_start_engine(app))
    yield
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await app[ENGINE].close()


async def _start_engine(app: web.Application) -> None:
    try:
        await app[ENGINE].start()
    except FrameworkError as error:
        app[FATAL].set_exception(error)
    else:
        log.info("the engine answers with %s", app[ENGINE].model)


async def _ready(request: web.Request) -> web.Response:
    await request.app[ENGINE].check_health()
    return reply(request, {"status": "ready"})


async def _stats(request: web.Request) -> web.Response:
    sessions = request.app[SESSIONS]
    held = {"sessions": len(sessions), "session_tokens": sessions.tokens}
    return reply(request, {**request.app[ENGINE].stats(), **held})


async def _verify(request: web.Request) -> web.Response:
    body = await read(request, VerifyRequest)
    return reply(request, await request.app[VERIFIER].verify_draft(body, request[REQUEST_ID]))


async def _models(request: web.Request) -> web.StreamResponse:
    return await _answer(request, request.app[ENGINE].serving.openai_serving_models.show_available_models)


async def _chat_completion(request: web.Request) -> web.StreamResponse:
    serving = request.app[ENGINE].serving.openai_serving_chat
    return await _answer(request, serving.create_chat_completion, await _generation(request, ChatCompletionRequest))


async def _completion(request: web.Request) -> web.StreamResponse:
    serving = request.app[ENGINE].serving.openai_serving_completion
    return await _answer(request, serving.create_completion, await _generation(request, CompletionRequest))


async def _tokenize(request: web.Request) -> web.StreamResponse:
    serving = request.app[ENGINE].serving.serving_tokenization
    body: Any = _validate(await read(request, dict[str, Any]), TokenizeRequest)
    return await _answer(request, serving.create_tokenize, body, None)


async def _detokenize(request: web.Request) -> web.StreamResponse:
    serving = request.app[ENGINE].serving.serving_tokenization
    body = _validate(await read(request, dict[str, Any]), DetokenizeRequest)
    return await _answer(request, serving.create_detokenize, body, None)


async def _generation(request: web.Request, type_: type[T]) -> T:
    body = await read(request, dict[str, Any])
    for name in IGNORED:
        if body.get(name):
            raise RequestError(f"{name} is not supported: it has no effect beside draft verification", param=name)
    if body.get("vllm_xargs"):
        # It would reach the scheduler as a draft that nobody checked.
        raise RequestError("vllm_xargs is not supported", param="vllm_xargs")
    return _validate({**body, "request_id": request[REQUEST_ID]}, type_)


def _validate(body: dict[str, Any], type_: Any) -> Any:
    try:
        return TypeAdapter(type_).validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        raise RequestError(f"{path}: {first['msg']}" if path else first["msg"], param=path or None) from error
    except VLLMError as error:
        raise RequestError(str(error), param=getattr(error, "parameter", None)) from error


async def _answer(request: web.Request, serve: Callable[..., Awaitable[Any]], *arguments: object) -> web.StreamResponse:
    """Whatever a vLLM serving object returns, as a response: a model, an error object, or a stream of SSE lines."""
    try:
        result = await serve(*arguments)
    except EngineDeadError as error:
        raise EngineError("the engine has died") from error
    except (VLLMError, ValueError, TypeError, NotImplementedError) as error:
        result = create_error_response(error)
    if isinstance(result, ErrorResponse):
        return reply(request, _openai_error(result), result.error.code)
    if isinstance(result, BaseModel):
        return reply(request, result.model_dump(mode="json"))
    return await stream(request, _encoded(result))


async def _encoded(lines: AsyncGenerator[str, None]) -> AsyncGenerator[bytes, None]:
    # Closing the lines aborts the generation when the client has left.
    async with aclosing(lines):
        async for line in lines:
            yield line.encode()


def _openai_error(response: ErrorResponse) -> dict[str, Any]:
    """vLLM puts the HTTP status into `code` and a Python-like name into `type`; OpenAI has a word in both."""
    error = response.error
    kind = "invalid_request_error" if error.code < 500 else "server_error"
    code = "not_found" if error.code == 404 else None
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}
