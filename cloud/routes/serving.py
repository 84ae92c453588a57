"""Runs vLLM's own serving objects for the cloud's routes: checks, admission, tenants, responses, streams, errors."""

import asyncio
import logging
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, nullcontext
from functools import partial
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from starlette.requests import Request
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensResponse, AnthropicMessagesResponse
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from cloud.engine import grammars
from cloud.engine.engine import CloudEngine
from cloud.engine.supervisor import EngineSupervisor
from cloud.routes import request_cost
from cloud.routes.admission import Admission
from cloud.routes.bodies import validate
from cloud.routes.engine_turns import EngineTurns, read_ahead
from cloud.verify.validation import require
from common.errors import EngineError, FrameworkError, RequestError
from common.fair_queue import Turn
from common.grammar.spec import GrammarSpec
from common.http.messages import ERROR_OBJECT, REQUEST_ID, TENANT, error_object, read, reply, stream
from common.http.request_context import current_priority
from common.protocol.content import anthropic_errors
from common.tracing.context import current_traceparent
from common.tracing.spans import records

REFUSED = ("min_p", "logit_bias")
"""Sampling fields that vLLM refuses when it has a speculative config; here by name, before anything else."""

MAX_MODEL_NAME = 256

DUMPED: Mapping[Any, dict[str, Any]] = {
    ResponsesResponse: {"by_alias": True},
    AnthropicMessagesResponse: {"exclude_none": True},
    AnthropicCountTokensResponse: {"exclude_none": True},
}
"""How vLLM's own routes write these replies."""

log = logging.getLogger(__name__)

Serve = Callable[..., Awaitable[Any]]


class Serving:
    """One engine's, shared by all routes; admission counts what each generation may cost."""

    def __init__(
        self, engine: CloudEngine, supervisor: EngineSupervisor, admission: Admission, turns: EngineTurns
    ) -> None:
        self.engine = engine
        self._supervisor = supervisor
        self._admission = admission
        self._turns = turns

    async def generate(
        self,
        request: web.Request,
        kind: Any,
        serve: Serve,
        cost_of: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda body: body,
        grammar_of: Callable[[Any], GrammarSpec | None] = lambda body: grammars.spec_of(
            body.extract_structured_outputs()
        ),
    ) -> web.StreamResponse:
        """The answer of `serve` to the request's body as vLLM's model `kind`.

        `cost_of`: the body with the names of a chat or completion; `grammar_of`: what restricts the answer.
        """
        self._admission.check_room()  # a full server reads no more of a request than its head
        body = await self.read(request)
        _refuse_unsupported(body)
        limit = self._admission.limit.requests
        cost = request_cost.of_generation(cost_of(body), self.engine.max_model_len, limit)
        body["request_id"] = request[REQUEST_ID]
        salt = body.get("cache_salt") or ""
        if request[TENANT] and isinstance(salt, str):  # vLLM refuses a salt of another type
            body["cache_salt"] = request[TENANT] + salt
        generation = validate(body, kind)
        if (spec := grammar_of(generation)) is not None:
            await self.engine.check_grammar(spec)
        if isinstance(priority := body.get("priority"), int):  # vLLM refuses one of another type
            current_priority.set(priority)
        with self._admission.admit(cost.tokens, cost.requests):
            turn = partial(self._turns.turn, cost.requests)
            streams = body.get("stream") is True  # its head and signs of life are sent before its turn
            return await self.answer(request, serve, generation, _trace_headers(), turn=turn, streams=streams)

    async def read(self, request: web.Request) -> dict[str, Any]:
        """The request's body; refuses a long name of a model, which vLLM would log and return whole as unknown."""
        body = await read(request, dict[str, Any])
        name = body.get("model")
        fits = not isinstance(name, str) or len(name) <= MAX_MODEL_NAME  # vLLM refuses another type
        require(fits, f"must have at most {MAX_MODEL_NAME} characters", "model")
        return body

    async def answer(
        self, request: web.Request, serve: Serve, *arguments: object, turn: Turn = nullcontext, streams: bool = False
    ) -> web.StreamResponse:
        """What a vLLM serving object returns (a model, an error object, or a stream of events) as a response.

        `turn`: entered around what the engine computes, which for an answer that `streams` are its events.
        """
        try:
            with self._supervisor.using():
                async with nullcontext() if streams else turn():
                    result = await serve(*arguments)
                _raise_if_cancelled()
        except EngineDeadError as error:
            raise EngineError("the engine has died") from error
        except (VLLMError, ValueError, TypeError, NotImplementedError) as error:
            result = create_error_response(error)
        except (AttributeError, LookupError, AssertionError) as error:
            # vLLM's converters take the shape of nested parts for granted, as its checks do.
            # The error's own words may quote the body; where it came from does not.
            kind, place = type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
            log.warning("request %s: vLLM could not read a part of the body: %s\n%s", request[REQUEST_ID], kind, place)
            raise RequestError("a part of the body has a shape that vLLM cannot read") from error
        if isinstance(result, ErrorResponse):
            return reply(request, _error(request, result), result.error.code)
        if isinstance(result, BaseModel):
            return reply(request, result.model_dump(mode="json", **DUMPED.get(type(result), {})))
        error_event = anthropic_errors.error_event if ERROR_OBJECT in request else None
        return await stream(request, read_ahead(self._encoded(result, turn)), error_event)

    async def _encoded(self, events: AsyncGenerator[Any, None], turn: Turn) -> AsyncGenerator[bytes, None]:
        # Closing the events aborts the generation when the client has left.
        async with aclosing(events):
            with self._supervisor.using():
                async with turn():
                    async for event in events:
                        yield _event(event).encode()


def _event(event: Any) -> str:
    """A stream's event as it is sent; vLLM's Responses give it as a model, the other routes as text."""
    if isinstance(event, str):
        return event
    return f"event: {event.type}\ndata: {event.model_dump_json(by_alias=True)}\n\n"


def _trace_headers() -> Request | None:
    """The trace context as vLLM takes it: the headers of a request; it needs nothing else of one."""
    headers = [(b"traceparent", current_traceparent.get().encode())]
    return Request({"type": "http", "headers": headers}) if records() else None


def _raise_if_cancelled() -> None:
    """Raises CancelledError in a cancelled task: vLLM catches it, and returns an error object."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


def _refuse_unsupported(body: dict[str, Any]) -> None:
    for name in REFUSED:
        if body.get(name):
            raise RequestError(f"{name} is not supported: vLLM refuses it beside draft verification", param=name)
    if body.get("vllm_xargs"):
        # It would reach the scheduler as `extra_args`, such as a draft that was not checked.
        raise RequestError("vllm_xargs is not supported", param="vllm_xargs")
    for name in ("structured_outputs", "response_format"):
        format = body.get(name)
        if isinstance(format, dict) and (format.get("structural_tag") or format.get("type") == "structural_tag"):
            # vLLM compiles them in this process, without a limit, and a schema in one may end the process.
            raise RequestError("structural tags are not supported", param=name)


def _error(request: web.Request, response: ErrorResponse) -> dict[str, Any]:
    """vLLM's error in the form of the request's route: vLLM puts the HTTP status into `code`, and a name of its own
    into `type`."""
    error = FrameworkError(response.error.message, response.error.param)
    error.status = response.error.code
    error.type = "invalid_request_error" if error.status < 500 else "server_error"
    error.code = "not_found" if error.status == 404 else None
    return request.get(ERROR_OBJECT, error_object)(error)
