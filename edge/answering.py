"""The answer to a request's body, whether it came over HTTP or as a line of a batch."""

from typing import Any

from common.errors import UnsupportedError
from common.protocol import codec
from common.protocol import openai as api
from edge.api import ways
from edge.api.completions import Completion
from edge.api.context import ServerContext
from edge.api.resolve import resolve
from edge.dialects import responses
from edge.dialects.response_store import ResponseStore
from edge.dialects.responses_request import ResponsesRequest
from edge.embeddings import embeddings
from edge.relay import relay


async def generation(
    path: str, body: api.GenerationRequest, raw: dict[str, Any], context: ServerContext
) -> Completion | relay.Relay:
    """What answers a chat or text completion; `raw`: the body as it came, where a cloud may be sent it whole."""
    body = ways.applied(body, context)
    path = path.removeprefix("/v1")
    if (relayed := await relay.of_tools(path, raw, body, context)) is not None:
        return relayed
    try:
        return Completion(await resolve(body, context), context)
    except UnsupportedError as error:
        return await relay.of_unsupported(error, path, raw, body, context)


async def whole(path: str, data: bytes, context: ServerContext, kept: ResponseStore, tenant: str) -> Any:
    """The response to a body of JSON, of those routes that a batch may ask; raises what an HTTP request would."""
    if path == "/v1/embeddings":
        return await embeddings.embed(codec.decode_request(data, dict[str, Any]), context)
    if path == "/v1/responses":
        answer = await responses.answer(codec.decode_request(data, ResponsesRequest), context, kept, tenant)
        return await answer.whole()
    raw = codec.decode_request(data, dict[str, Any]) if context.text_clouds else {}
    body: api.GenerationRequest
    if path == "/v1/chat/completions":
        body = codec.decode_request(data, api.ChatRequest)
    else:
        body = codec.decode_request(data, api.CompletionRequest)
    return await (await generation(path, body, raw, context)).whole()
