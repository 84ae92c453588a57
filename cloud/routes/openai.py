"""The cloud's OpenAI API: thin handlers over vLLM's own serving objects.

vLLM's objects do the work (templates, tools, structured output, checks, streaming); the handlers pass bodies to them,
and responses, streams and errors back.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, get_args

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
from vllm.exceptions import VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from cloud.engine.engine import CloudEngine
from cloud.engine.supervisor import EngineSupervisor
from cloud.routes import request_cost
from cloud.routes.admission import Admission
from common.errors import EngineError, RequestError
from common.http.messages import REQUEST_ID, TENANT, read, reply, stream

IGNORED = ("min_p", "logit_bias")
"""Sampling fields that vLLM ignores when it has a speculative config."""


class OpenAIRoutes:
    """The /v1 routes and tokenization of one engine; admission counts what each generation may cost."""

    def __init__(self, engine: CloudEngine, supervisor: EngineSupervisor, admission: Admission) -> None:
        self._engine = engine
        self._supervisor = supervisor
        self._admission = admission

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat_completion)
        app.router.add_post("/v1/completions", self.completion)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/detokenize", self.detokenize)

    async def models(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._engine.serving.openai_serving_models.show_available_models)

    async def chat_completion(self, request: web.Request) -> web.StreamResponse:
        serve = self._engine.serving.openai_serving_chat.create_chat_completion
        return await self._generate(request, ChatCompletionRequest, serve)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        serve = self._engine.serving.openai_serving_completion.create_completion
        return await self._generate(request, CompletionRequest, serve)

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        body = _validate(await read(request, dict[str, Any]), TokenizeRequest)
        return await self._answer(request, self._engine.serving.serving_tokenization.create_tokenize, body, None)

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        body = _validate(await read(request, dict[str, Any]), DetokenizeRequest)
        return await self._answer(request, self._engine.serving.serving_tokenization.create_detokenize, body, None)

    async def _generate(
        self, request: web.Request, kind: Any, serve: Callable[..., Awaitable[Any]]
    ) -> web.StreamResponse:
        body = await read(request, dict[str, Any])
        _refuse_unsupported(body)
        cost = request_cost.of_generation(body, self._engine.max_model_len, self._admission.limit.requests)
        body["request_id"] = request[REQUEST_ID]
        salt = body.get("cache_salt") or ""
        if request[TENANT] and isinstance(salt, str):  # vLLM refuses a salt of another type
            body["cache_salt"] = request[TENANT] + salt
        generation = _validate(body, kind)
        with self._admission.admit(cost.tokens, cost.requests):
            return await self._answer(request, serve, generation)

    async def _answer(
        self, request: web.Request, serve: Callable[..., Awaitable[Any]], *arguments: object
    ) -> web.StreamResponse:
        """What a vLLM serving object returns (a model, an error object, or a stream of SSE lines) as a response."""
        try:
            with self._supervisor.using():
                result = await serve(*arguments)
                _raise_if_cancelled()
        except EngineDeadError as error:
            raise EngineError("the engine has died") from error
        except (VLLMError, ValueError, TypeError, NotImplementedError) as error:
            result = create_error_response(error)
        if isinstance(result, ErrorResponse):
            return reply(request, _openai_error(result), result.error.code)
        if isinstance(result, BaseModel):
            return reply(request, result.model_dump(mode="json"))
        return await stream(request, self._encoded(result))

    async def _encoded(self, lines: AsyncGenerator[str, None]) -> AsyncGenerator[bytes, None]:
        # Closing the lines aborts the generation when the client has left.
        async with aclosing(lines):
            with self._supervisor.using():
                async for line in lines:
                    yield line.encode()


def _raise_if_cancelled() -> None:
    """Raises CancelledError in a cancelled task: vLLM catches it, and returns an error object."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


def _refuse_unsupported(body: dict[str, Any]) -> None:
    for name in IGNORED:
        if body.get(name):
            raise RequestError(f"{name} is not supported: it has no effect beside draft verification", param=name)
    if body.get("vllm_xargs"):
        # It would reach the scheduler as `extra_args`, such as a draft that was not checked.
        raise RequestError("vllm_xargs is not supported", param="vllm_xargs")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _validate(body: dict[str, Any], kind: Any) -> Any:
    """`body` as one of vLLM's request models, or a union of them; raises RequestError that names the wrong field."""
    try:
        return _adapter(kind).validate_python(body)
    except ValidationError as error:
        raise _refusal(error) from error
    except VLLMError as error:
        raise RequestError(str(error), param=getattr(error, "parameter", None)) from error
    except (TypeError, AttributeError, LookupError) as error:
        # vLLM's own checks of a body run before its types are checked, and take them for granted.
        raise _wrong_type(body, kind) from error


def _refusal(error: ValidationError, *field: str) -> RequestError:
    first = error.errors()[0]
    path = ".".join(map(str, (*field, *first["loc"])))
    return RequestError(f"{path}: {first['msg']}" if path else first["msg"], param=path or None)


def _wrong_type(body: dict[str, Any], kind: Any) -> RequestError:
    """Names the first field whose value is not of the field's own type."""
    for model in get_args(kind) or (kind,):
        for name in body.keys() & model.model_fields.keys():
            try:
                TypeAdapter(model.model_fields[name].annotation).validate_python(body[name])
            except ValidationError as error:
                return _refusal(error, name)
    return RequestError("the body has a field of a wrong type")


def _openai_error(response: ErrorResponse) -> dict[str, Any]:
    """vLLM's error in OpenAI's form: vLLM puts the HTTP status into `code` and a Python-like name into `type`."""
    error = response.error
    kind = "invalid_request_error" if error.code < 500 else "server_error"
    code = "not_found" if error.code == 404 else None
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}
