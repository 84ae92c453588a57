"""Tokenizes the prompts of requests and refuses those that do not fit the model."""

import asyncio
from functools import partial

from common.errors import ContextLengthError, RequestError
from common.protocol.openai import CompletionRequest
from common.protocol.tokenization import LONGEST_TOKEN
from common.tracing.spans import span
from edge.api.context import ServedModel
from edge.engine.text_model import SHORT_TEXT
from edge.text import fill_in
from edge.text.conversation import Conversation, WrittenPrompt
from edge.text.fill_in import FillIn


async def of_completion(model: ServedModel, request: CompletionRequest) -> list[list[int]]:
    """The token ids of each prompt; text may contain special tokens, as in vLLM and llama-server."""
    engine = model.engine
    if request.suffix:
        gap = FillIn(request.text_before, request.suffix, with_files=False)
        return [await of_gap(model, gap, request.max_tokens)]
    prompts = [p if isinstance(p, list) else await tokenize(model, p, parse_special=True) for p in request.prompts]
    for prompt in prompts:
        room_after(len(prompt), model.context_length, param="prompt")
        engine.check_ids(prompt, param="prompt")
    return prompts


async def of_chat(
    model: ServedModel, conversation: Conversation, add_generation_prompt: bool = True
) -> tuple[list[int], WrittenPrompt]:
    """A conversation's token ids and text in the model's chat template."""
    if not any(message.text.strip() for message in conversation.messages):
        raise RequestError("the prompt is empty", param="messages")
    if not model.engine.chat_template:
        raise RequestError("this model has no chat template: use /v1/completions", param="messages")
    with span("template") as traced:
        written = await model.template.prompt(conversation, add_generation_prompt)
        ids = await tokenize(model, written.text, add_special=False, parse_special=True, param="messages")
        traced.set(prompt_tokens=len(ids))
    return ids, written


async def of_gap(model: ServedModel, wanted: FillIn, max_tokens: int | None) -> list[int]:
    """The token ids of a prompt for the text between two others; `max_tokens`: of the answer, None: not limited.

    Raises RequestError for a model that was not trained for it, and as `fill_in.prompt` does.
    """
    tokens, length = model.engine.vocabulary.fill_in, model.engine.context_length
    if tokens is None:
        name, example = model.engine.model_name, "Qwen2.5-Coder"
        raise RequestError(
            f"{name} has no special tokens for filling in (FIM): it needs a model that has, such as {example}", "model"
        )
    room = length - (length // 4 if max_tokens is None else max_tokens)
    tokenize = partial(model.engine.tokenize, add_special=False)
    return await asyncio.to_thread(fill_in.prompt, wanted, tokens, tokenize, room)


async def tokenize(
    model: ServedModel, text: str, add_special: bool = True, parse_special: bool = False, param: str = "prompt"
) -> list[int]:
    """The text's token ids; raises ContextLengthError, without tokenizing it, if the text is far too long."""
    engine, size = model.engine, len(text.encode())
    if size > model.context_length * LONGEST_TOKEN:
        raise ContextLengthError(f"{size} bytes do not fit a context of {model.context_length} tokens", param=param)
    if size <= SHORT_TEXT:
        return engine.tokenize(text, add_special, parse_special)
    return await asyncio.to_thread(engine.tokenize, text, add_special, parse_special)


def room_after(tokens: int, context_length: int, param: str) -> int:
    """How many tokens of an answer fit a context after a prompt.

    Raises RequestError for an empty prompt, ContextLengthError for one that leaves no room.
    """
    if not tokens:
        raise RequestError("the prompt is empty", param=param)
    if tokens >= context_length:
        raise ContextLengthError(f"{tokens} prompt tokens leave no room in a context of {context_length}", param=param)
    return context_length - tokens
