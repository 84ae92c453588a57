"""A real pair: what the edge passes on, text that is filled in, and the cloud's own Responses and Messages."""

import base64
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from common.cloud_client.chat_stream import CloudChat, CloudChatAnswer
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.errors import RequestError
from common.grammar.spec import GrammarKind, GrammarSpec
from common.types import GREEDY, Mode, Sampling
from tests.conftest import Servers
from tests.support.edge_in_process import edge_of
from tests.support.gguf_copies import with_fill_in

QUESTION = "What is machine learning?"
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
GREEDILY = {"temperature": 0}
"""The client has no argument for it."""
PNG = base64.b64encode(bytes.fromhex("89504e470d0a1a0a") + bytes(40)).decode()
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}


async def plain(servers: Servers) -> dict[str, Any]:
    asked = {"messages": ASKED, "temperature": 0, "mode": "cloud_only"}
    return dict(await servers.edge.post("/v1/chat/completions", asked, dict))


async def test_a_text_model_refuses_images_and_goes_on(servers: Servers) -> None:
    content = [{"type": "text", "text": "What is this?"}, IMAGE]
    for server in (servers.edge, servers.cloud):
        asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 5}
        with pytest.raises(RequestError) as refusal:
            await server.post("/v1/chat/completions", asked, dict)
        assert refusal.value.status == 400
        assert "image" in refusal.value.message.lower() or "multimodal" in refusal.value.message.lower()
    assert (await plain(servers))["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(1.0, seed=5, top_k=5), Sampling(grammar=GrammarSpec(GrammarKind.CHOICE, '["yes", "no"]'))],
    ids=["greedy", "sampled", "choice"],
)
async def test_a_chat_that_the_cloud_writes_itself_has_its_answer(servers: Servers, sampling: Sampling) -> None:
    request = DecodingRequest([], 40, sampling, Plan(mode=Mode.CLOUD_ONLY))
    answer = CloudChatAnswer(CloudChat(ASKED, 40), request, servers.clouds, 1)
    chunks = [chunk async for chunk in answer.run()]
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    scores = [score for chunk in chunks for score in chunk.logprobs or ()]
    assert [score.token_id for score in scores] == tokens != []
    text = (await servers.edge.post("/detokenize", {"tokens": tokens}, dict))["prompt"]
    if sampling is GREEDY:
        whole = await plain(servers)
        assert text.startswith(whole["choices"][0]["message"]["content"])
        assert answer.answer.prompt_tokens == whole["usage"]["prompt_tokens"]
    elif sampling.grammar:
        assert text.removesuffix("<|end|>") in ("yes", "no")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score"])
async def test_a_cloud_that_generates_says_that_it_gives_no_vectors(servers: Servers, path: str) -> None:
    for server in (servers.edge, servers.cloud):
        with pytest.raises(RequestError, match="generates text") as refusal:
            await server.post(path, {"input": "x", "query": "x", "documents": ["y"]}, dict)
        assert refusal.value.status == 404


async def test_a_text_that_is_filled_in_losslessly_is_the_clouds(servers: Servers, tmp_path: Path) -> None:
    file = with_fill_in(tmp_path / "fills-in.gguf")
    async with edge_of(servers.cloud_url, f"edge.model.path={file}") as edge:
        for prefix in ("The capital of", "def add(a, b):\n    return", "What is AI? It is"):
            asked = {"input_prefix": prefix, "input_suffix": "\nThat is all.", "temperature": 0, "n_predict": 16}
            alone = await edge.post("/infill", asked | {"model": "cloud"}, dict)
            for way in ("rounds", "continuous"):
                answer = await edge.post("/infill", asked | {"model": "lossless", "way": way}, dict)
                assert answer["content"] == alone["content"]
                assert answer["collaboration"]["lossless"]


# The cloud's own Responses and Messages


async def test_the_clouds_responses_are_vllms(servers: Servers) -> None:
    text = (await plain(servers))["choices"][0]["message"]["content"]
    async with openai.AsyncOpenAI(base_url=servers.cloud_url + "/v1", api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": "demo-cloud", "input": QUESTION, "temperature": 0, "store": False}
        reply = await client.responses.create(**asked)
        assert (reply.output_text, reply.status) == (text, "completed")
        streamed = [event async for event in await client.responses.create(**asked, stream=True)]
        deltas = [event.delta for event in streamed if event.type == "response.output_text.delta"]
        assert "".join(deltas) == text and streamed[-1].type == "response.completed"
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(**asked | {"model": "another"})
        schema = {"type": "object", "properties": {"a": {"not": {}}}}
        with pytest.raises(openai.BadRequestError, match="not"):
            await client.responses.create(
                **asked, text={"format": {"type": "json_schema", "name": "x", "schema": schema}}
            )


async def test_the_clouds_messages_are_vllms(servers: Servers) -> None:
    text = (await plain(servers))["choices"][0]["message"]["content"]
    async with anthropic.AsyncAnthropic(base_url=servers.cloud_url, api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": "demo-cloud", "messages": ASKED, "max_tokens": 100}
        reply: Any = await client.messages.create(**asked, extra_body=GREEDILY)
        assert reply.content[0].text == text and reply.stop_reason == "end_turn"
        async with client.messages.stream(**asked, extra_body=GREEDILY) as stream:
            assert await stream.get_final_text() == text
        counted = await client.messages.count_tokens(model="demo-cloud", messages=ASKED)
        assert counted.input_tokens == reply.usage.input_tokens
        with pytest.raises(anthropic.NotFoundError) as refusal:
            await client.messages.create(**asked | {"model": "another"})
        assert refusal.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(**asked | {"messages": [{"role": "nobody", "content": "x"}]})
