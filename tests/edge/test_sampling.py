"""Sampling: the requested distributions, penalties, log probabilities, JSON schemas."""

import json
from collections.abc import AsyncIterator

import jsonschema
import numpy as np
import pytest
import pytest_asyncio

from common.config_edge import EdgeModelConfig
from common.errors import GrammarError, RequestError
from common.grammar.spec import GrammarKind, GrammarSpec
from common.types import GREEDY, Sampling
from edge.engine.engine import EdgeEngine
from edge.llama.sampling import Penalties, draw, kth_largest, log_probabilities, uniforms

MODEL = "models/demo-edge.gguf"
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "kind": {"enum": ["city", "country"]},
            "large": {"type": "boolean"},
        },
        "required": ["name", "kind", "large"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.7),
        Sampling(1.3, top_k=5),
        Sampling(1.0, top_k=1000),
        Sampling(1.0, top_p=0.6),
        Sampling(1.0, min_p=0.2),
        Sampling(1.5, min_p=0.01, top_k=12),
        Sampling(2.0, top_p=0.8, top_k=9, min_p=0.05),
    ],
    ids=str,
)
@pytest.mark.parametrize("vocabulary", [40, 1000])
def test_draws_follow_the_requested_distribution(sampling: Sampling, vocabulary: int) -> None:
    source = np.random.default_rng(11)
    logits = source.normal(0, 3, vocabulary).astype(np.float32)
    expected = reference_distribution(logits, sampling)
    draws = 8_000
    tokens = [draw(logits, sampling, uniform) for uniform in (np.arange(draws) + 0.5) / draws]
    frequencies = np.bincount(tokens, minlength=len(logits)) / draws
    assert frequencies == pytest.approx(expected, abs=2 / draws)


def reference_distribution(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Temperature, then min-p, then top-k, then top-p, token by token."""
    probs = np.exp(logits.astype(np.float64) / sampling.temperature)
    probs[probs < sampling.min_p * probs.max()] = 0
    order = np.argsort(-probs)
    kept = order[: sampling.top_k or len(order)]
    mass, chosen = 0.0, []
    for token in kept:
        if mass >= sampling.top_p:
            break
        chosen.append(token)
        mass += probs[token] / probs[kept].sum()
    result = np.zeros_like(probs)
    result[chosen] = probs[chosen] / probs[chosen].sum()
    return result


@pytest.mark.parametrize("size", [1, 63, 64, 1000, 5000])
def test_the_kth_largest_is_what_sorting_finds(size: int) -> None:
    source = np.random.default_rng(size)
    values = source.integers(0, 200, size).astype(np.float32)  # with ties
    in_order = np.sort(values)[::-1]
    for k in {1, 2, 5, 17, 60, size} - set(range(size + 1, 61)):
        assert kth_largest(values, k) == in_order[k - 1]


def test_random_numbers_depend_on_positions_not_on_calls() -> None:
    sampling = Sampling(1.0, seed=5)
    whole = uniforms(sampling, 3, 20)
    pieces = np.concatenate([uniforms(sampling, 3, 7), uniforms(sampling, 10, 13)])
    assert (whole == pieces).all()
    assert len(np.unique(whole)) == whole.size
    assert (uniforms(Sampling(1.0), 3, 20) != uniforms(Sampling(1.0), 3, 20)).all()


def test_penalties_count_as_openai_and_vllm_count() -> None:
    source = np.random.default_rng(2)
    logits = source.normal(0, 2, 30).astype(np.float32)
    prompt, answer = [1, 2, 2, 3], [3, 4, 4, 5]
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.3, prompt_tokens=len(prompt))
    expected = logits.astype(np.float64)
    for token in range(30):
        if token in prompt + answer:
            expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
        expected[token] -= 0.25 * answer.count(token) + 0.5 * (token in answer)
    for known in range(len(answer) + 1):  # the first `known` tokens exist before, the others are added
        penalties = Penalties(sampling, prompt + answer[:known])
        for token in answer[known:]:
            penalties.add(token)
        changed = logits.copy()
        penalties.apply(changed)
        assert changed == pytest.approx(expected, abs=1e-5)


def test_log_probabilities_are_those_of_the_softmax() -> None:
    source = np.random.default_rng(4)
    logits = source.normal(0, 5, (3, 500)).astype(np.float32)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1, keepdims=True))
    for row, score in zip(exact, log_probabilities(logits, [7, 8, 9], 5), strict=True):
        assert score.logprob == pytest.approx(row[score.token_id], abs=1e-4)
        assert [token for token, _ in score.top] == np.argsort(-row)[:5].tolist()
        assert [p for _, p in score.top] == pytest.approx(np.sort(row)[::-1][:5], abs=1e-4)
    assert log_probabilities(logits, [1, 2, 3], 0)[0].top == []
    assert len(log_probabilities(logits, [1, 2, 3], 10_000)[0].top) == 500


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[EdgeEngine]:
    async with EdgeEngine(EdgeModelConfig(path=MODEL, context_length=512, threads=1)) as running:
        yield running


def ask(engine: EdgeEngine, question: str) -> list[int]:
    return engine.tokenize(f"<|user|>{question}<|assistant|>", parse_special=True)


async def drawn(engine: EdgeEngine, prompt: list[int], sampling: Sampling, pieces: list[int]) -> list[int]:
    tokens: list[int] = []
    async with engine.sequence(prompt) as sequence:
        for limit in pieces:
            draft = await sequence.draft(prompt + tokens, limit, sampling)
            tokens += draft.token_ids
            if draft.finished:
                break
    return tokens


PENALISED = {"presence_penalty": 1.0, "frequency_penalty": 1.5, "repetition_penalty": 1.2}


@pytest.mark.parametrize("temperature", [0.0, 1.2])
async def test_penalties_reduce_repetition(engine: EdgeEngine, temperature: float) -> None:
    prompt = engine.tokenize("one two one two one two one two")

    async def repeated(**penalties: float) -> int:
        answers = [
            await drawn(engine, prompt, Sampling(temperature, seed=seed, prompt_tokens=len(prompt), **penalties), [60])
            for seed in range(6)
        ]
        return sum(len(tokens) - len(set(tokens)) for tokens in answers)

    assert await repeated(**PENALISED) < await repeated(frequency_penalty=-2.0)
    hard = Sampling(temperature, seed=3, prompt_tokens=len(prompt), **PENALISED)
    assert await drawn(engine, prompt, hard, [1, 7, 20, 32]) == await drawn(engine, prompt, hard, [60])


def json_schema(text: str) -> GrammarSpec:
    return GrammarSpec(GrammarKind.JSON, text)


def schema(temperature: float, seed: int, prompt: list[int]) -> Sampling:
    return Sampling(temperature, seed=seed, grammar=json_schema(SCHEMA), prompt_tokens=len(prompt))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_under_a_schema_fits_it(engine: EdgeEngine, temperature: float) -> None:
    prompt = ask(engine, "What is the capital of France?")
    for seed in range(5 if temperature else 1):
        tokens = await drawn(engine, prompt, schema(temperature, seed, prompt), [200])
        assert tokens[-1] in engine.end_tokens
        jsonschema.validate(json.loads(engine.detokenize(tokens)), json.loads(SCHEMA))
        assert await drawn(engine, prompt, schema(temperature, seed, prompt), [3, 1, 9, 200]) == tokens


async def test_a_schema_follows_an_answer_that_is_rolled_back(engine: EdgeEngine) -> None:
    prompt = ask(engine, "What is the capital of France?")
    sampling = schema(1.0, 1, prompt)
    whole = await drawn(engine, prompt, sampling, [200])
    other = await drawn(engine, prompt, schema(1.0, 2, prompt), [200])
    async with engine.sequence(prompt) as sequence:
        await sequence.draft(prompt + other[:6], 5, sampling)
        assert (await sequence.draft(prompt + whole[:3], 200, sampling)).token_ids == whole[3:]
        foreign = engine.tokenize("this is no JSON")
        with pytest.raises(GrammarError, match="the answer so far does not match this JSON schema"):
            await sequence.draft(prompt + foreign, 3, sampling)
        assert (await sequence.draft(prompt + whole[:5], 200, sampling)).token_ids == whole[5:]


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[]",
        '"text"',
        '{"$ref": "https://example.com/schema"}',
        '{"$ref": "#/no/such/place"}',
        '{"type": "nonsense"}',
        '{"type": "array", "minItems": 1000000000}',
        '{"anyOf": ' * 2000 + "1" + "}" * 2000,
        '{"type": "object", "properties": ' + json.dumps({"p" * 70_000: {}}) + "}",
    ],
    ids=lambda text: text[:30],
)
async def test_an_invalid_schema_is_refused_and_the_engine_goes_on(engine: EdgeEngine, wrong: str) -> None:
    prompt = ask(engine, "What is AI?")
    async with engine.sequence(prompt) as sequence:
        with pytest.raises(RequestError):
            await sequence.draft(prompt, 8, Sampling(grammar=json_schema(wrong), prompt_tokens=len(prompt)))
        assert len((await sequence.draft(prompt, 8, GREEDY)).token_ids) == 8


async def test_first_tokens_of_many_seeds_follow_the_schemas_softmax(engine: EdgeEngine) -> None:
    prompt = ask(engine, "What is the capital of France?")
    digits = json.dumps({"enum": list(range(10))})
    draws = 600
    counts = dict.fromkeys(range(10), 0)
    async with engine.sequence(prompt) as sequence:
        probs: dict[int, float] = {}
        for seed in range(draws):
            sampling = Sampling(1.0, seed=seed, grammar=json_schema(digits), prompt_tokens=len(prompt))
            draft = await sequence.draft(prompt, 1, sampling)
            [digit] = [int(engine.detokenize(draft.token_ids) or -1)]
            counts[digit] += 1
            probs[digit] = draft.probs[0]
    total = sum(probs.values())
    for digit, prob in probs.items():
        share = prob / total
        assert abs(counts[digit] / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5 + 2 / draws
