"""Long texts at the cloud: limits before any work, few at once, and nobody's short text waits for them."""

import asyncio
from threading import Event
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeResponse, TokenizeResponse
from vllm.renderers import TokenizeParams

from cloud.engine.engine import CloudEngine
from cloud.engine.text_readers import LONG, TextReaders, size
from cloud.routes.openai import MAX_IDS, MAX_LONG_TEXTS
from common.protocol.tokenization import LONGEST_TOKEN
from tests.cloud.toy_engine import ToyEngine, toy_cloud

CONTEXT = 1000
PARAMETERS = TokenizeParams(max_total_tokens=None, max_output_tokens=0, add_special_tokens=True)


class SlowTokenizer:
    """vLLM's tokenization in the readers' threads, where long texts wait for `released`."""

    def __init__(self) -> None:
        self.released = Event()
        self.begun = 0
        self.readers = TextReaders()

    async def create_tokenize(self, body: Any, _: None) -> TokenizeResponse:
        await asyncio.get_running_loop().run_in_executor(self.readers, self._read, body.prompt)
        return TokenizeResponse(count=0, max_model_len=CONTEXT, tokens=[])

    async def create_detokenize(self, body: Any, _: None) -> DetokenizeResponse:
        return DetokenizeResponse(prompt="")

    def _read(self, text: str) -> None:
        if len(text) > LONG:
            self.begun += 1
            self.released.wait()


def toy(tokenizer: SlowTokenizer) -> ToyEngine:
    engine = ToyEngine(max_model_len=CONTEXT)
    engine.serving = SimpleNamespace(serving_tokenization=tokenizer)
    return engine


async def status(http: aiohttp.ClientSession, path: str, **body: object) -> int:
    async with http.post(path, json=body) as response:
        await response.read()
        return response.status


async def test_others_are_served_while_long_texts_are_read_and_too_many_of_them_are_refused() -> None:
    tokenizer = SlowTokenizer()
    async with toy_cloud(toy(tokenizer)) as http:
        long = {"prompt": "a" * (LONG + 1)}
        texts = [asyncio.create_task(status(http, "/tokenize", **long)) for _ in range(MAX_LONG_TEXTS + 1)]
        ended, texts_taken = await asyncio.wait(texts, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in ended] == [429]
        assert await status(http, "/tokenize", prompt="short") == 200
        assert await status(http, "/verify", new_token_ids=[5]) == 200
        assert tokenizer.begun <= 1
        tokenizer.released.set()
        assert await asyncio.gather(*texts_taken) == [200] * MAX_LONG_TEXTS
        assert await status(http, "/tokenize", **long) == 200
    tokenizer.readers.shutdown()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "a" * (CONTEXT * LONGEST_TOKEN + 1)}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a" * (CONTEXT * LONGEST_TOKEN + 1)}]}),
        ("/detokenize", {"tokens": [5] * (MAX_IDS + 1)}),
        ("/verify", {"prompt": "a" * (CONTEXT * LONGEST_TOKEN + 1)}),
        ("/verify", {"new_token_ids": [5], "draft_tokens": ["a" * (CONTEXT * LONGEST_TOKEN + 1)]}),
    ],
)
async def test_what_cannot_fit_the_context_is_refused_without_being_tokenized(path: str, body: dict[str, Any]) -> None:
    async with toy_cloud(toy(SlowTokenizer())) as http, http.post(path, json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == list(body)[-1]


@pytest.mark.asyncio(loop_scope="session")
async def test_vllm_reads_long_texts_in_a_thread_of_their_own(cloud_engine: CloudEngine) -> None:
    readers = cloud_engine._readers
    assert readers is not None
    released = Event()
    readers._long.submit(released.wait)
    try:
        renderer = cloud_engine.serving.online_renderer.renderer
        assert renderer._executor._inner is readers
        short = await renderer._tokenize_prompt_async({"prompt": "What is AI?"}, PARAMETERS)
        assert short["prompt_token_ids"] == await cloud_engine.encode("What is AI?", special=True)
        long = asyncio.create_task(cloud_engine.encode("a " * LONG, special=True))
        assert await cloud_engine.encode("What is AI?", special=True)
        assert not long.done()
    finally:
        released.set()
    assert len(await long) >= LONG


@pytest.mark.parametrize(
    ("value", "characters"),
    [("abc", 3), ([1, 2, 3], 3), ({"a": "ab", "b": ["c", {"d": "ef"}]}, 7), ((), 0), (None, 0), (5, 0)],
)
def test_the_size_of_a_body_is_that_of_its_texts(value: object, characters: int) -> None:
    assert size(value) == characters
