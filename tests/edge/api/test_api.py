"""The edge's HTTP API keeps what OpenAI's API promises; on a real server without a cloud."""

import json
from typing import Any

import jsonschema
import pytest

from models.corpus import questions as corpus
from tests.conftest import Edge
from tests.support.edge_calls import ASKED, CHAT, chat, completion, counted, streamed, texts

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


# Prompts and choices


async def test_a_prompt_may_be_text_or_ids_alone_or_in_lists(edge: Edge) -> None:
    tokens = (await edge.http.post("/tokenize", {"messages": CHAT["messages"]}, dict))["tokens"]
    alone = await completion(edge)
    for prompt in ([ASKED], tokens, [tokens]):
        again = await completion(edge, prompt=prompt)
        assert texts(again) == texts(alone)
        assert counted(again["usage"]) == counted(alone["usage"])
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


async def test_stats_say_what_was_chosen_for_the_machine_and_why(edge: Edge) -> None:
    hardware = (await edge.http.get("/stats", dict))["hardware"]
    assert hardware.keys() == {"threads", "threads_batch", "kv_cache_bytes"}
    assert all(setting["value"] > 0 and setting["why"] for setting in hardware.values())


async def test_the_choices_of_a_prompt_share_its_kv(edge: Edge) -> None:
    before = (await edge.http.get("/stats", dict))["engine"]
    answer = await completion(edge, prompt="What is the port of HTTPS? " * 20, n=4, max_tokens=3)
    after = (await edge.http.get("/stats", dict))["engine"]
    reused = after["reused_prompt_tokens"] - before["reused_prompt_tokens"]
    assert reused >= 3 * (answer["usage"]["prompt_tokens"] - 1)


async def test_more_choices_than_the_engine_has_sequences_are_all_answered(edge: Edge) -> None:
    answer = await completion(edge, prompt=["The"] * 20, n=8, max_tokens=2)
    assert len(answer["choices"]) == 160


# Streams


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"stop": [" machines", "xyz"]}])
async def test_a_stream_gives_the_same_as_the_whole_answer(edge: Edge, path: str, fields: dict[str, Any]) -> None:
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
    assert counted(chunks[-1]["usage"]) == counted(whole["usage"])
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


# Sampling


@pytest.mark.parametrize("seed", range(4))
async def test_an_answer_matches_its_schema(edge: Edge, seed: int) -> None:
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


async def test_the_edge_alone_is_right_as_often_as_its_evaluation_says(edge: Edge) -> None:
    pairs = corpus.held_out_pairs()[::40]
    answers = [
        texts(await chat(edge, messages=[{"role": "user", "content": prompt}], max_tokens=160))
        for _, prompt, _ in pairs
    ]
    right = sum(answer == [wanted] for answer, (_, _, wanted) in zip(answers, pairs, strict=True))
    assert 0.4 < right / len(pairs) < 0.9
