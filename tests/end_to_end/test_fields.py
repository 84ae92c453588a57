"""Fields in modes that the cloud takes part in, on the real pair: the values are the cloud's own."""

from itertools import pairwise
from typing import Any

import pytest

from tests.conftest import Servers
from tests.support.edge_calls import PLAIN

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOSSLESS: dict[str, Any] = {"use_confidence_check": False}
ROUNDS, CONTINUOUS = LOSSLESS | {"way": "rounds"}, LOSSLESS | {"way": "continuous"}
CLOUD: dict[str, Any] = {"mode": "cloud_only"}
OF_THE_CLOUD = pytest.mark.parametrize(
    "fields", [ROUNDS, CONTINUOUS, CLOUD], ids=["rounds", "continuous", "cloud_only"]
)


async def of_edge(servers: Servers, **fields: Any) -> dict[str, Any]:
    return await servers.edge.post("/v1/completions", PLAIN | fields, dict)


async def of_cloud(servers: Servers, **fields: Any) -> dict[str, Any]:
    return await servers.cloud.post("/v1/completions", PLAIN | fields, dict)


def scores(answer: dict[str, Any]) -> dict[str, list[Any]]:
    return dict(answer["choices"][0]["logprobs"])


@OF_THE_CLOUD
async def test_logprobs_are_those_of_the_cloud(servers: Servers, fields: dict[str, Any]) -> None:
    own, theirs = scores(await of_edge(servers, logprobs=3, **fields)), scores(await of_cloud(servers, logprobs=3))
    count = len(theirs["tokens"])
    assert own["tokens"][:count] == theirs["tokens"]  # the edge also lists the token that ends the answer
    assert own["token_logprobs"][:count] == pytest.approx(theirs["token_logprobs"], abs=1e-3)
    for mine, likely in zip(own["top_logprobs"], theirs["top_logprobs"], strict=False):
        assert [mine[text] for text in likely if text in mine] == pytest.approx(
            [likely[text] for text in likely if text in mine], abs=1e-3
        )


async def test_a_gated_answer_has_the_logprob_of_every_token_from_the_model_that_gave_it(servers: Servers) -> None:
    fields = {"logprobs": 0, "collaboration": {"tokens": True}, "prompt": "<|user|>Sort: 5 3 9 1<|assistant|>"}
    answer = await of_edge(servers, **fields)
    sources = [token["source"] for token in answer["choices"][0]["collaboration"]["tokens"]]
    assert {"edge"} < set(sources)
    assert len(scores(answer)["token_logprobs"]) == len(sources)
    edge = scores(await of_edge(servers, **fields, mode="edge_only"))
    first = next(place for place, source in enumerate(sources) if source != "edge")
    assert scores(answer)["token_logprobs"][:first] == pytest.approx(edge["token_logprobs"][:first], abs=1e-3)


@OF_THE_CLOUD
@pytest.mark.parametrize("max_tokens", [0, 4])
async def test_an_echo_is_scored_by_the_cloud(servers: Servers, fields: dict[str, Any], max_tokens: int) -> None:
    asked: dict[str, Any] = {"echo": True, "logprobs": 1, "prompt": "<|user|>What is AI?<|assistant|>Artificial"}
    own = await of_edge(servers, max_tokens=max_tokens, **asked, **fields)
    theirs = await of_cloud(servers, max_tokens=max(1, max_tokens), **asked)
    assert theirs["choices"][0]["text"].startswith(own["choices"][0]["text"][: len(asked["prompt"])])
    begun = servers.edge.post("/tokenize", {"prompt": asked["prompt"]}, dict)
    count = (await begun)["count"]
    assert len(scores(own)["tokens"]) == count + max_tokens
    assert scores(own)["token_logprobs"][0] is None
    assert scores(own)["token_logprobs"][1:count] == pytest.approx(scores(theirs)["token_logprobs"][1:count], abs=1e-3)
    assert all(before <= after for before, after in pairwise(scores(own)["text_offset"]))


@OF_THE_CLOUD
async def test_answers_go_on_after_their_end_or_do_not_end_too_early(servers: Servers, fields: dict[str, Any]) -> None:
    ended = (await of_edge(servers, max_tokens=100, **fields))["usage"]["completion_tokens"]
    assert ended < 100
    for more in ({"ignore_eos": True}, {"min_tokens": ended + 5}):
        wanted = {"max_tokens": ended + 10, **more}
        own, theirs = await of_edge(servers, **wanted, **fields), await of_cloud(servers, **wanted)
        assert own["choices"][0]["text"] == theirs["choices"][0]["text"]
        assert own["usage"]["completion_tokens"] >= ended + 5


async def test_the_clouds_model_can_be_asked_by_its_name(servers: Servers) -> None:
    listed = {card["id"]: card["owned_by"] for card in (await servers.edge.get("/v1/models", dict))["data"]}
    assert listed["demo-cloud"] == "cloud"
    answer = await of_edge(servers, model="demo-cloud")
    assert (answer["model"], answer["collaboration"]["mode"]) == ("demo-cloud", "cloud_only")
    assert answer["choices"][0]["text"] == (await of_cloud(servers))["choices"][0]["text"]


async def test_both_servers_tell_what_a_client_needs_of_their_tokenizer(servers: Servers) -> None:
    """lm-eval reads it, and then sends texts as these servers count them."""
    for server in (servers.edge, servers.cloud):
        told: dict[str, Any] = await server.get("/tokenizer_info", dict)
        assert told["eos_token"] and "<|assistant|>" in told["chat_template"]
