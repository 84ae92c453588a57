"""What a request asks, as token ids that fit the model. Knows nothing of answers."""

import asyncio
from collections.abc import Sequence

from common.errors import ContextLengthError, RequestError
from common.protocol.openai import CompletionRequest, Message
from edge.api.context import Speaker
from edge.engine.text_model import TextModel

LONGEST_TOKEN = 256
"""Bytes: no vocabulary has a longer token, so that a text of more than so many for each place cannot fit."""
MAX_IDS = 100_000
"""Token ids in one list: so many become text in a tenth of a second."""
SHORT_TEXT = 4096
"""Bytes that are tokenized in a fraction of a millisecond, so that the event loop may wait for it."""


async def of_completion(speaker: Speaker, request: CompletionRequest) -> list[list[int]]:
    """The prompts of a completion request; special tokens may be spelled out in text, as in vLLM and llama-server."""
    engine = speaker.engine
    prompts = [p if isinstance(p, list) else await tokenized(engine, p, parse_special=True) for p in request.prompts]
    for prompt in prompts:
        check_room(engine, len(prompt), param="prompt")
        check_ids(engine, prompt, param="prompt")
    return prompts


async def of_chat(speaker: Speaker, messages: list[Message], add_generation_prompt: bool = True) -> list[int]:
    """A conversation in the model's own form."""
    if not any(message.text.strip() for message in messages):
        raise RequestError("the prompt is empty", param="messages")
    if not speaker.engine.chat_template:
        raise RequestError("this model has no chat template: ask /v1/completions", param="messages")
    text = await speaker.template.render(messages, add_generation_prompt)
    return await tokenized(speaker.engine, text, add_special=False, parse_special=True, param="messages")


async def tokenized(
    engine: TextModel, text: str, add_special: bool = True, parse_special: bool = False, param: str = "prompt"
) -> list[int]:
    """The text's token ids; raises ContextLengthError, without looking at it, for one that is far too long."""
    size = len(text.encode())
    if size > engine.context_length * LONGEST_TOKEN:
        raise ContextLengthError(f"{size} bytes do not fit a context of {engine.context_length} tokens", param=param)
    if size <= SHORT_TEXT:
        return engine.tokenize(text, add_special, parse_special)
    return await asyncio.to_thread(engine.tokenize, text, add_special, parse_special)


def check_ids(engine: TextModel, token_ids: Sequence[int], param: str) -> None:
    """Raises RequestError for an id that is not in the vocabulary, or for more than MAX_IDS."""
    if len(token_ids) > MAX_IDS:
        raise RequestError(f"more than {MAX_IDS} token ids", param=param)
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < engine.vocab_size):
        raise RequestError(f"token ids must be in 0..{engine.vocab_size - 1}", param=param)


def check_room(engine: TextModel, tokens: int, param: str) -> None:
    """Raises RequestError for an empty prompt, ContextLengthError for one after which nothing fits."""
    if not tokens:
        raise RequestError("the prompt is empty", param=param)
    if tokens >= engine.context_length:
        raise ContextLengthError(
            f"{tokens} prompt tokens leave no room in a context of {engine.context_length}", param=param
        )
