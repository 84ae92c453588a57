"""The routes about the vocabulary of the edge's model: its tokens, its texts, and what clouds compare."""

from aiohttp import web

from common.errors import RequestError
from common.http.messages import read, reply
from common.protocol import tokenization
from common.protocol.openai_tools import toolset
from common.types import Mode
from edge.api import prompts
from edge.api.context import CONTEXT
from edge.text.conversation import Conversation


def add_routes(app: web.Application) -> None:
    app.router.add_post("/tokenize", _tokenize)
    app.router.add_post("/detokenize", _detokenize)
    app.router.add_get("/tokenizer", _tokenizer)
    app.router.add_get("/tokenizer_info", _tokenizer_info)


async def _tokenize(request: web.Request) -> web.Response:
    context, body = request.app[CONTEXT], await read(request, tokenization.TokenizeRequest)
    model = context.model(Mode.EDGE_ONLY)
    engine = model.engine
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either prompt or messages", param="prompt")
    if body.messages is not None:
        tools = toolset(body.tools, None, None).tools
        conversation = Conversation(body.messages, tools, body.chat_template_kwargs or {})
        tokens, _ = await prompts.of_chat(model, conversation, body.add_generation_prompt is not False)
    else:
        tokens = await prompts.tokenize(
            model, body.prompt or "", body.add_special_tokens is not False, parse_special=True
        )
    return reply(
        request, tokenization.TokenizeReply(tokens=tokens, count=len(tokens), max_model_len=engine.context_length)
    )


async def _detokenize(request: web.Request) -> web.Response:
    engine, body = request.app[CONTEXT].engine, await read(request, tokenization.DetokenizeRequest)
    engine.check_ids(body.tokens, param="tokens")
    return reply(request, tokenization.DetokenizeReply(engine.detokenize(body.tokens)))


async def _tokenizer(request: web.Request) -> web.Response:
    return reply(request, await request.app[CONTEXT].vocabulary.info())


async def _tokenizer_info(request: web.Request) -> web.Response:
    """As in vLLM; with this route and the two above, lm-eval needs no tokenizer of its own."""
    engine = request.app[CONTEXT].engine
    names = {"bos_token": engine.bos or None, "eos_token": engine.eos or None}
    return reply(request, names | {"chat_template": engine.chat_template})
