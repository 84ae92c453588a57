"""Log probabilities over HTTP: their tokens spell the text, and an echo repeats the values of the drawing."""

import itertools
from typing import Any

import pytest

from tests.conftest import Edge
from tests.support.edge_calls import ASKED, chat, completion, streamed, texts


async def test_a_chats_logprobs_spell_its_text_and_greedy_tokens_are_the_likeliest(edge: Edge) -> None:
    answer = await chat(edge, logprobs=True, top_logprobs=3)
    content = answer["choices"][0]["logprobs"]["content"]
    spelled = b"".join(bytes(token["bytes"]) for token in content).decode()
    assert spelled.removesuffix("<|end|>") == texts(answer)[0]
    assert len(content) == answer["usage"]["completion_tokens"]
    for token in content:
        assert [token["token"], token["logprob"]] == [token["top_logprobs"][0][key] for key in ("token", "logprob")]
        assert len(token["top_logprobs"]) == 3
        falling = [likely["logprob"] for likely in token["top_logprobs"]]
        assert falling == sorted(falling, reverse=True)
        assert falling[0] <= 0


@pytest.mark.parametrize("top", [0, 1, 5])
async def test_a_completions_logprobs_have_an_entry_for_each_token(edge: Edge, top: int) -> None:
    answer = await completion(edge, logprobs=top, temperature=1, seed=3)
    (text,), scores = texts(answer), answer["choices"][0]["logprobs"]
    assert len({len(column) for column in scores.values()}) == 1
    for token, logprob, likely, offset in zip(
        scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], scores["text_offset"], strict=True
    ):
        assert text.startswith(token, offset) or token == "<|end|>"
        assert likely[token] == logprob
        assert top <= len(likely) <= top + 1 or top == 0


async def test_a_streams_logprobs_are_those_of_the_whole_answer(edge: Edge) -> None:
    whole = (await chat(edge, logprobs=True, top_logprobs=2))["choices"][0]["logprobs"]["content"]
    chunks = await streamed(edge, "/v1/chat/completions", logprobs=True, top_logprobs=2)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    together = list(itertools.chain.from_iterable(part["content"] for part in parts if part))
    assert [token["token"] for token in together] == [token["token"] for token in whole]
    assert [token["logprob"] for token in together] == pytest.approx([token["logprob"] for token in whole], abs=1e-3)


@pytest.mark.parametrize("fields", [{}, {"structured_outputs": {"choice": ["yes", "no"]}}])
async def test_an_events_tokens_spell_its_text_and_the_end_token_comes_with_the_end(
    edge: Edge, fields: dict[str, Any]
) -> None:
    *chunks, last = await streamed(edge, "/v1/chat/completions", logprobs=True, **fields)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices
    for choice in choices:
        assert "".join(token["token"] for token in choice["logprobs"]["content"]) == choice["delta"]["content"]
    assert [token["token"] for token in last["choices"][0]["logprobs"]["content"]] == ["<|end|>"]


async def test_logprobs_end_where_a_stop_string_ends_the_text(edge: Edge) -> None:
    answer = await completion(edge, stop=" is", logprobs=0)
    assert "".join(answer["choices"][0]["logprobs"]["tokens"]) == texts(answer)[0]


async def test_an_echo_gives_the_logprobs_of_when_the_text_was_drawn(edge: Edge) -> None:
    drawn = await completion(edge, logprobs=1)
    scores = drawn["choices"][0]["logprobs"]
    echoed = await completion(edge, prompt=ASKED + texts(drawn)[0], max_tokens=0, echo=True, logprobs=1)
    again = echoed["choices"][0]["logprobs"]
    assert texts(echoed) == [ASKED + texts(drawn)[0]]
    assert again["token_logprobs"][0] is None and again["top_logprobs"][0] is None
    count = sum(token != "<|end|>" for token in scores["tokens"])
    assert again["tokens"][-count:] == scores["tokens"][:count]
    assert again["token_logprobs"][-count:] == pytest.approx(scores["token_logprobs"][:count], abs=1e-3)
    assert echoed["usage"]["completion_tokens"] == 0


async def test_an_echo_continues_into_the_answer_with_offsets_in_the_whole_text(edge: Edge) -> None:
    answer = await completion(edge, prompt=ASKED + "É 東", echo=True, logprobs=0)
    (text,), scores = texts(answer), answer["choices"][0]["logprobs"]
    assert text.startswith(ASKED + "É 東") and len(text) > len(ASKED + "É 東")
    for token, offset in zip(scores["tokens"], scores["text_offset"], strict=True):
        assert text.startswith(token, offset) or token.startswith("bytes:") or token == "<|end|>"
    assert texts(await completion(edge, echo=True))[0] == ASKED + texts(await completion(edge))[0]
