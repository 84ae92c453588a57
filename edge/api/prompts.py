"""Tokenizes the prompts of requests and refuses those that do not fit the model."""

import asyncio
from collections.abc import Sequence

from common.errors import ContextLengthError, RequestError
from common.protocol.openai import CompletionRequest, Message
from edge.api.context import ServedModel
from edge.engine.text_model import TextModel

LONGEST_TOKEN = 256
"""Bytes: no vocabulary has a longer token, so a text of more bytes for each token of the context cannot fit."""
MAX_IDS = 100_000
"""Token ids in one list; detokenizing so many takes a tenth of a second."""
SHORT_TEXT = 4096
"""Bytes that are tokenized in a fraction of a millisecond, so the event loop may do it itself."""


async def of_completion(model: ServedModel, request: CompletionRequest) -> list[list[int]]:
    """The token ids of each prompt; text may contain special tokens, as in vLLM and llama-server."""
    engine = model.engine
    prompts = [p if isinstance(p, list) else await tokenize(model, p, parse_special=True) for p in request.prompts]
    for prompt in prompts:
        room_after(len(prompt), model.context_length, param="prompt")
        check_ids(engine, prompt, param="prompt")
    return prompts


async def of_chat(model: ServedModel, messages: list[Message], add_generation_prompt: bool = True) -> list[int]:
    """The token ids of a conversation in the model's chat template."""
    if not any(message.text.strip() for message in messages):
        raise RequestError("the prompt is empty", param="messages")
    if not model.engine.chat_template:
        raise RequestError("this model has no chat template: use /v1/completions", param="messages")
    text = await model.template.render(messages, add_generation_prompt)
    return await tokenize(model, text, add_special=False, parse_special=True, param="messages")


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


def check_ids(engine: TextModel, token_ids: Sequence[int], param: str) -> None:
    """Raises RequestError for an id outside the vocabulary, and for more than MAX_IDS ids."""
    if len(token_ids) > MAX_IDS:
        raise RequestError(f"more than {MAX_IDS} token ids", param=param)
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < engine.vocab_size):
        raise RequestError(f"token ids must be in 0..{engine.vocab_size - 1}", param=param)


def room_after(tokens: int, context_length: int, param: str) -> int:
    """How many tokens of an answer fit a context after a prompt.

    Raises RequestError for an empty prompt, ContextLengthError for one that leaves no room.
    """
    if not tokens:
        raise RequestError("the prompt is empty", param=param)
    if tokens >= context_length:
        raise ContextLengthError(f"{tokens} prompt tokens leave no room in a context of {context_length}", param=param)
    return context_length - tokens
