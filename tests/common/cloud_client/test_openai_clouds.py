"""What servers with OpenAI's API are asked, and how their errors and their text are read."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common import config
from common.cloud_client.openai_client import OpenAIClient
from common.cloud_client.openai_servers import ServerInfo
from common.cloud_client.openai_stream import GeneratedStream, GenerationCall
from common.cloud_client.openai_verifier import OpenAIVerifier, TextPrompt
from common.cloud_client.pool import CallOutcome, Cloud, CloudPool
from common.config_schema import CloudEntry, CommunicationConfig, HttpClientConfig
from common.enums import CloudKind, ContinuationForm
from common.errors import ConfigError, ContextLengthError, EndpointError, RequestError
from common.http.error_replies import Busy
from common.http.traffic import Traffic
from common.types import FinishReason, Sampling
from tests.support.fake_openai import FakeOpenAI, serving

TURNS = [{"role": "user", "content": "Hello"}]
PROMPT = TextPrompt(
    text="<s>user: Hello assistant:",
    turns=TURNS,
    bos="<s>",
    tokens=2,
    encode=lambda text: list(text.encode()),
    spell=lambda token: bytes([token]),
)
"""Each byte is a token."""


def info(continuation: ContinuationForm, owner: str = "vllm") -> ServerInfo:
    return ServerInfo("big", owner, 4096, continuation)


# What is asked


def test_an_answer_goes_on_after_the_text_of_the_prompt() -> None:
    request = PROMPT.request(info(ContinuationForm.TEXT), b"Hi th", {})
    assert (request.path, request.body["prompt"]) == ("/completions", "<s>user: Hello assistant:Hi th")
    assert request.body["add_special_tokens"] is False, "the text has them"
    of_llama = PROMPT.request(info(ContinuationForm.TEXT, "llamacpp"), b"Hi th", {})
    assert of_llama.body["prompt"] == "user: Hello assistant:Hi th", "llama-server begins it in any case"


def test_an_answer_goes_on_as_the_assistants_unfinished_message() -> None:
    begun = PROMPT.request(info(ContinuationForm.MESSAGE), b"Hi", {})
    assert begun.path == "/chat/completions"
    assert begun.body["messages"] == [*TURNS, {"role": "assistant", "content": "Hi"}]
    assert begun.body["continue_final_message"]
    assert begun.body["add_generation_prompt"] is False
    new = PROMPT.request(info(ContinuationForm.MESSAGE), b"", {}).body
    assert new["messages"] == TURNS
    assert "continue_final_message" not in new


def test_a_server_that_cannot_go_on_is_asked_for_whole_answers_only() -> None:
    assert PROMPT.request(info(ContinuationForm.NONE), b"", {}).body["messages"] == TURNS
    with pytest.raises(EndpointError, match="cannot go on with an answer that has begun"):
        PROMPT.request(info(ContinuationForm.NONE), b"Hi", {})


def test_half_a_character_is_not_sent() -> None:
    request = PROMPT.request(info(ContinuationForm.MESSAGE), "aß".encode()[:-1], {})
    assert request.body["messages"][-1]["content"] == "a"
    assert request.pending == "ß".encode()[:1]


# What is read


@pytest.mark.parametrize(
    ("status", "reply", "kind"),
    [
        (400, {"error": {"message": "no such field", "code": 400, "type": "BadRequestError"}}, RequestError),
        (400, {"error": {"message": "exceeds this model's maximum context length"}}, ContextLengthError),
        (400, {"error": {"message": "too long", "type": "exceed_context_size_error", "code": 400}}, ContextLengthError),
        (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, ContextLengthError),
        (401, {"error": "no key"}, EndpointError),
        (404, {"object": "error", "message": "no such model"}, EndpointError),
        (429, {"error": {"message": "slow down"}}, Busy),
        (503, "Loading model", EndpointError),
    ],
)
async def test_errors_of_all_forms_are_read(status: int, reply: object, kind: type[Exception]) -> None:
    async with serving() as fake:
        fake.status, fake.error = status, reply
        async with OpenAIClient(fake.url, HttpClientConfig()) as client:
            with pytest.raises(kind) as caught:
                await anext(client.events("/completions", {}))
            assert type(caught.value) is kind


async def test_each_call_has_a_connection_of_its_own() -> None:
    """The server may be closing a kept one just then, and the call would be lost."""
    used = list[object]()

    async def models(request: web.Request) -> web.Response:
        used.append(request.transport)
        return web.json_response({"data": []})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    async with TestServer(app) as server, OpenAIClient(str(server.make_url("/v1")), HttpClientConfig()) as client:
        await client.check_ready()
        await client.check_ready()
    assert used[0] is not used[1]


async def read(fake: FakeOpenAI, pending: bytes = b"", max_tokens: int = 100) -> tuple[bytes, GeneratedStream]:
    request = GenerationCall("/completions", {"model": "words", "stream": True}, pending)
    async with OpenAIClient(fake.url, HttpClientConfig()) as client:
        stream = GeneratedStream(client, request, 7, max_tokens, PROMPT.encode, PROMPT.spell, Traffic())
        async with stream:
            return bytes([token async for frame in stream for token in frame.token_ids]), stream


async def test_a_stream_of_text_is_tokens_and_tells_its_usage() -> None:
    async with serving() as fake:
        data, stream = await read(fake)
    assert data == b"Clouds are made of water."
    assert stream.end is not None
    assert (stream.end.finish_reason, stream.end.steps, stream.end.cached_tokens) == (FinishReason.STOP, 6, 5)
    assert stream.traffic.calls == 1
    assert stream.traffic.bytes_down > stream.traffic.bytes_up > 0


async def test_an_answer_that_is_longer_in_the_edges_tokens_ends_where_it_must() -> None:
    async with serving() as fake:
        data, stream = await read(fake, max_tokens=9)
    assert data == b"Clouds ar"
    assert stream.end is not None
    assert stream.end.finish_reason is FinishReason.LENGTH


async def test_the_rest_of_a_character_is_not_doubled() -> None:
    async with serving() as fake:
        fake.words = ("ß", "ß")
        data, _ = await read(fake, pending="ß".encode()[:1])
    assert data == "ßß".encode()[1:]


async def test_a_stream_that_breaks_is_a_lost_cloud() -> None:
    async with serving() as fake:
        fake.break_after = 2
        with pytest.raises(EndpointError, match="broke the connection"):
            await read(fake)


async def test_a_stream_that_ends_without_a_reason_is_a_lost_cloud() -> None:
    async with serving() as fake:
        fake.ends = False
        with pytest.raises(EndpointError, match=r"/v1 ended its answer without a reason$"):
            await read(fake)


# The clouds of one answer


def pool(*urls: str, **more: Any) -> CloudPool:
    entries = [CloudEntry(url=url, kind=CloudKind.OPENAI) for url in urls]
    return CloudPool(CommunicationConfig(clouds=entries, **more))


async def known(cloud: Cloud) -> ServerInfo:
    return info(ContinuationForm.TEXT)


async def test_a_failed_server_is_not_asked_again_and_another_one_goes_on() -> None:
    async with serving() as one, serving() as two, pool(one.url, two.url) as clouds:
        verifier = OpenAIVerifier(clouds, known, PROMPT, 4096)
        ids = [1, 2, *b"Rain."]
        one.status = two.status = 500
        with pytest.raises(EndpointError, match="answered 500: out of order"):
            async with verifier.stream(ids, 10, Sampling()):
                pass
        assert len(one.asked) == len(two.asked) == 1
        one.status = two.status = 200
        first = next(cloud for cloud in clouds if cloud.url == clouds.pick(ids).url)
        failing, other = (one, two) if first.url == one.url else (two, one)
        failing.status = 500
        async with OpenAIVerifier(clouds, known, PROMPT, 4096).stream(ids, 10, Sampling()) as stream:
            assert bytes([token async for frame in stream for token in frame.token_ids]) == b"Clouds are"
        assert other.asked[-1][1]["prompt"].endswith("Rain.")


async def test_a_server_that_does_not_tell_its_model_has_failed_once_and_another_one_goes_on() -> None:
    async with serving() as one, serving() as two, pool(one.url, two.url) as clouds:
        lost = clouds.pick([1, 2])

        async def told(cloud: Cloud) -> ServerInfo:
            with clouds.track_call(cloud):
                if cloud is lost:
                    raise EndpointError("gone")
            return info(ContinuationForm.TEXT)

        async with OpenAIVerifier(clouds, told, PROMPT, 4096).stream([1, 2], 10, Sampling()) as stream:
            assert [token async for frame in stream for token in frame.token_ids]
        assert (lost.outcomes[CallOutcome.FAILED], clouds.failovers) == (1, 1)


async def test_neutral_fields_are_not_sent_and_others_by_the_servers_own_names() -> None:
    sampling = Sampling(temperature=0.5, top_k=3, repetition_penalty=1.5, seed=7)
    async with serving() as fake, pool(fake.url) as clouds:
        sent = {}
        for owner in ("vllm", "llamacpp"):

            async def told(cloud: Cloud, owner: str = owner) -> ServerInfo:
                return info(ContinuationForm.TEXT, owner)

            async with OpenAIVerifier(clouds, told, PROMPT, 4096).stream([1, 2], 10, sampling):
                pass
            sent[owner] = fake.asked[-1][1]
    common = {"temperature": 0.5, "seed": 7, "top_k": 3, "max_tokens": 10, "model": "big", "stream": True}
    assert common.items() <= sent["vllm"].items()
    assert common.items() <= sent["llamacpp"].items()
    assert sent["vllm"]["repetition_penalty"] == sent["llamacpp"]["repeat_penalty"] == 1.5
    assert {"top_p", "presence_penalty", "min_tokens"}.isdisjoint(sent["vllm"])


# The configuration


def load(*flags: str) -> CommunicationConfig:
    return config.load(flags=flags, environment={}).communication


def test_the_short_forms_name_clouds_of_this_project() -> None:
    both = load("communication.cloud_endpoint=http://a:1", "communication.cloud_endpoints=['http://b:2']")
    assert [entry.url for entry in both.entries.values()] == ["http://a:1", "http://b:2"]
    assert both.kind is CloudKind.EDGECLOUD


def test_clouds_of_one_kind_are_named_in_one_place() -> None:
    named = load("communication.clouds=[{url: 'http://a:1/v1', kind: openai, api_key: secret}]")
    assert named.kind is CloudKind.OPENAI
    with pytest.raises(ConfigError, match=r"clouds\[1\].url: is of kind edgecloud, the first cloud of kind openai"):
        load("communication.clouds=[{url: 'http://a:1/v1', kind: openai}, {url: 'http://b:2'}]")
    with pytest.raises(ConfigError, match=r"cloud_endpoints: name all clouds in communication.clouds, or none"):
        load("communication.clouds=[{url: 'http://a:1'}]", "communication.cloud_endpoints=['http://b:2']")
    with pytest.raises(ConfigError, match=r"clouds\[0\].*url"):
        load("communication.clouds=[{kind: openai}]")
