"""The edge's HTTP API, on a real server that has no cloud: what OpenAI's API promises holds for this one."""

import io
import itertools
import json
from typing import Any

import aiohttp
import jsonschema
import pytest

from models import corpus
from tests.conftest import Edge

ASKED = "<|user|>What is AI?<|assistant|>"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is AI?"}], "temperature": 0}
PLAIN: dict[str, Any] = {"prompt": ASKED, "temperature": 0, "max_tokens": 24}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "marks": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{1,3}$"},
    },
    "required": ["city", "marks", "code"],
    "additionalProperties": False,
}


async def completion(edge: Edge, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.http.post("/v1/completions", PLAIN | fields, dict)
    return answer


async def chat(edge: Edge, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await edge.http.post("/v1/chat/completions", CHAT | fields, dict)
    return answer


async def streamed(edge: Edge, path: str, **fields: Any) -> list[dict[str, Any]]:
    base = CHAT if "chat" in path else PLAIN
    return [json.loads(event) async for event in edge.http.events(path, base | {"stream": True} | fields)]


async def refused(edge: Edge, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    data = io.BytesIO(json.dumps(body).encode())
    async with aiohttp.ClientSession() as session, session.post(edge.url + path, data=data) as response:
        answer: dict[str, Any] = await response.json()
        return response.status, answer["error"]


def texts(answer: dict[str, Any]) -> list[str]:
    return [c["text"] if "text" in c else c["message"]["content"] for c in answer["choices"]]


# Prompts and choices


async def test_a_prompt_may_be_text_or_ids_alone_or_in_lists(edge: Edge) -> None:
    tokens = (await edge.http.post("/tokenize", {"messages": CHAT["messages"]}, dict))["tokens"]
    alone = await completion(edge)
    for prompt in ([ASKED], tokens, [tokens]):
        again = await completion(edge, prompt=prompt)
        assert texts(again) == texts(alone)
        assert again["usage"] == alone["usage"]
    twice = await completion(edge, prompt=[ASKED, "The"])
    assert texts(twice) == texts(alone) + texts(await completion(edge, prompt="The"))
    assert twice["usage"]["completion_tokens"] > alone["usage"]["completion_tokens"]


async def test_every_prompt_gets_n_choices_of_its_own(edge: Edge) -> None:
    answer = await completion(edge, prompt=["The", "A"], n=3, temperature=2, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len(set(texts(answer))) == 6


async def test_a_seed_repeats_an_answer_and_another_gives_another(edge: Edge) -> None:
    wild = {"prompt": "The", "temperature": 2, "max_tokens": 12, "use_kv_cache": False}
    seeds = (1, 2, -3, 2**63 - 1)
    first = [texts(await completion(edge, seed=seed, **wild)) for seed in seeds]
    assert first == [texts(await completion(edge, seed=seed, **wild)) for seed in seeds]
    assert len({text for (text,) in first}) == len(seeds)


async def test_null_is_a_fields_default(edge: Edge) -> None:
    empty = dict.fromkeys(
        ["top_p", "top_k", "min_p", "n", "stream", "stop", "seed", "logprobs", "echo", "best_of", "user"]
    )
    assert texts(await completion(edge, **empty)) == texts(await completion(edge))
    assert texts(await completion(edge, temperature=None, max_tokens=None, response_format=None))


async def test_more_choices_than_the_engine_has_places_are_all_answered(edge: Edge) -> None:
    answer = await completion(edge, prompt=["The"] * 20, n=8, max_tokens=2)
    assert len(answer["choices"]) == 160


# Streams


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"stop": [" machines", "xyz"]}])
async def test_a_stream_says_what_the_whole_answer_says(edge: Edge, path: str, fields: dict[str, Any]) -> None:
    whole = await (chat if "chat" in path else completion)(edge, **fields)
    chunks = await streamed(edge, path, stream_options={"include_usage": True}, **fields)
    parts: dict[int, str] = {}
    reasons = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"]["content"]
            parts[choice["index"]] = parts.get(choice["index"], "") + text
            reasons[choice["index"]] = choice["finish_reason"] or reasons.get(choice["index"])
    assert [parts[index] for index in sorted(parts)] == texts(whole)
    assert [reasons[c["index"]] for c in whole["choices"]] == [c["finish_reason"] for c in whole["choices"]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_a_streamed_chat_names_its_role_once(edge: Edge) -> None:
    chunks = await streamed(edge, "/v1/chat/completions")
    assert ["role" in chunk["choices"][0]["delta"] for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert "collaboration" in chunks[-1]


async def test_the_text_ends_before_a_stop_string(edge: Edge) -> None:
    (whole,) = texts(await completion(edge))
    stop = whole.split()[3]
    answer = await completion(edge, stop=stop)
    assert texts(answer) == [whole.partition(stop)[0]]
    assert answer["choices"][0]["finish_reason"] == "stop"


# Log probabilities


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
async def test_a_completions_logprobs_have_a_place_for_each_token(edge: Edge, top: int) -> None:
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


async def test_logprobs_end_where_a_stop_string_ends_the_text(edge: Edge) -> None:
    answer = await completion(edge, stop=" is", logprobs=0)
    assert "".join(answer["choices"][0]["logprobs"]["tokens"]) == texts(answer)[0]


async def test_an_echo_scores_the_prompt_as_it_was_scored_when_it_was_drawn(edge: Edge) -> None:
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


async def test_an_echo_goes_on_into_the_answer_with_offsets_in_the_whole_text(edge: Edge) -> None:
    answer = await completion(edge, prompt=ASKED + "É 東", echo=True, logprobs=0)
    (text,), scores = texts(answer), answer["choices"][0]["logprobs"]
    assert text.startswith(ASKED + "É 東") and len(text) > len(ASKED + "É 東")
    for token, offset in zip(scores["tokens"], scores["text_offset"], strict=True):
        assert text.startswith(token, offset) or token.startswith("bytes:") or token == "<|end|>"
    assert texts(await completion(edge, echo=True))[0] == ASKED + texts(await completion(edge))[0]


# Sampling


@pytest.mark.parametrize("seed", range(4))
async def test_what_a_schema_allows_is_what_comes(edge: Edge, seed: int) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    for choice in (await chat(edge, response_format=wanted, temperature=1, seed=seed, n=2))["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


async def test_a_json_object_is_one(edge: Edge) -> None:
    answer = await chat(edge, response_format={"type": "json_object"}, max_tokens=400)
    if answer["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(texts(answer)[0]), dict)
    assert texts(answer)[0].lstrip().startswith("{")


@pytest.mark.parametrize(
    "fields",
    [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 3}],
    ids=lambda f: next(iter(f)),
)
async def test_a_penalty_makes_repetition_rarer(edge: Edge, fields: dict[str, float]) -> None:
    def repeated(answer: dict[str, Any]) -> int:
        tokens = answer["choices"][0]["logprobs"]["tokens"]
        return len(tokens) - len(set(tokens))

    long = {"prompt": "1 1 1 1 1", "max_tokens": 60, "logprobs": 0, "temperature": 0}
    assert repeated(await completion(edge, **long, **fields)) < repeated(await completion(edge, **long))


@pytest.mark.parametrize("fields", [{"min_p": 1.0}, {"top_k": 1}, {"top_p": 1e-9}], ids=lambda f: next(iter(f)))
async def test_a_filter_that_leaves_one_token_is_greedy(edge: Edge, fields: dict[str, float]) -> None:
    assert texts(await completion(edge, temperature=2, seed=1, **fields)) == texts(await completion(edge))
    assert texts(await completion(edge, temperature=2, seed=1)) != texts(await completion(edge))


# Conversations


async def test_the_next_turn_of_a_chat_reuses_the_turns_before(edge: Edge) -> None:
    async def counts() -> tuple[int, int]:
        engine = (await edge.http.get("/stats", dict))["engine"]
        return engine["prompt_tokens"], engine["reused_prompt_tokens"]

    messages = [{"role": "user", "content": "What is the capital of Peru? " * 8}]
    known = 0
    for turn in range(3):
        before = await counts()
        answer = await chat(edge, messages=messages, max_tokens=30)
        after = await counts()
        prompted, reused = after[0] - before[0], after[1] - before[1]
        assert prompted == answer["usage"]["prompt_tokens"]
        assert reused >= known
        known = prompted
        messages += [
            {"role": "assistant", "content": texts(answer)[0]},
            {"role": "user", "content": f"And that of {'France' if turn else 'Spain'}?"},
        ]
    before = await counts()
    await chat(edge, messages=messages, max_tokens=1, use_kv_cache=False)
    assert (await counts())[1] == before[1], "with F3 off nothing is reused"


# Refusals


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"best_of": 3}, "best_of"),
        ("completions", {"suffix": "."}, "suffix"),
        ("completions", {"logit_bias": {"5": 1}}, "logit_bias"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ["a", 1]}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": [2**31]}, "prompt"),
        ("completions", {"prompt": [[1], []]}, "prompt"),
        ("completions", {"prompt": "x" * 3_000_000}, "prompt"),
        ("completions", {"prompt": "word " * 3000}, "prompt"),
        ("completions", {"prompt": ["a"] * 300}, "prompt"),
        ("completions", {"n": 2**31}, "n"),
        ("completions", {"n": 0}, "n"),
        ("completions", {"seed": 2**64}, "seed"),
        ("completions", {"top_k": 2**31}, "top_k"),
        ("completions", {"temperature": -1}, "temperature"),
        ("completions", {"temperature": "hot"}, "temperature"),
        ("completions", {"top_p": 0}, "top_p"),
        ("completions", {"min_p": 2}, "min_p"),
        ("completions", {"presence_penalty": 3}, "presence_penalty"),
        ("completions", {"repetition_penalty": 0}, "repetition_penalty"),
        ("completions", {"stop": ["a"] * 17}, "stop"),
        ("completions", {"stop": ""}, "stop"),
        ("completions", {"mode": "nonsense"}, "mode"),
        ("completions", {"unheard_of": 1}, None),
        ("completions", {"response_format": {"type": "json_schema"}}, "response_format"),
        (
            "completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}},
            "response_format",
        ),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"tools": [{}]}, "tools"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": " "}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "word " * 3000}]}, "messages"),
        ("chat/completions", {"max_tokens": 0}, "max_tokens"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(edge: Edge, path: str, fields: Any, param: str | None) -> None:
    base = CHAT if "chat" in path else PLAIN
    for stream in (False, True):
        body = base | {"stream": True} | fields if stream else base | fields
        if stream and param == "stream_options":
            continue
        status, error = await refused(edge, f"/v1/{path}", body)
        assert (status, error["param"]) == (400, param)
        assert error["type"] == "invalid_request_error"
    assert texts(await completion(edge, max_tokens=1))


@pytest.mark.parametrize("mode", ["collaborative", "cloud_only"])
@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"min_p": 0.1}, "min_p"),
        ("completions", {"logprobs": 0}, "logprobs"),
        ("completions", {"echo": True}, "echo"),
        ("chat/completions", {"logprobs": True}, "logprobs"),
    ],
)
async def test_what_the_cloud_cannot_do_is_refused_with_the_mode_that_can(
    edge: Edge, mode: str, path: str, fields: dict[str, Any], param: str
) -> None:
    base = (CHAT if "chat" in path else PLAIN) | fields
    status, error = await refused(edge, f"/v1/{path}", base | {"mode": mode, "use_draft_verify": True})
    assert (status, error["param"]) == (400, param)
    assert "edge_only" in error["message"]
    await edge.http.post(f"/v1/{path}", base | {"mode": "edge_only", "use_draft_verify": True}, dict)


async def test_the_edge_alone_answers_as_the_engine_evaluated_does(edge: Edge) -> None:
    pairs = corpus.held_out_pairs()[::40]
    answers = [
        texts(await chat(edge, messages=[{"role": "user", "content": prompt}], max_tokens=160))
        for _, prompt, _ in pairs
    ]
    right = sum(answer == [wanted] for answer, (_, _, wanted) in zip(answers, pairs, strict=True))
    assert 0.4 < right / len(pairs) < 0.9
