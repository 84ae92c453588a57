"""Penalties and schemas apply to the answer so far, although each round is a new request to vLLM."""

import asyncio
import json
import random

import pytest
from msgspec.structs import replace

from cloud.engine.engine import CloudEngine
from cloud.verify import stateless
from cloud.verify.round import VerifyRound
from common.grammar.spec import GrammarKind, GrammarSpec
from common.types import GREEDY, Sampling

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "words": {"type": "array", "items": {"enum": ["red", "blue"]}}},
        "required": ["n", "words"],
        "additionalProperties": False,
    }
)
SETTINGS = {
    "presence": Sampling(presence_penalty=2.0),
    "frequency": Sampling(frequency_penalty=2.0),
    "repetition": Sampling(repetition_penalty=1.6),
    "schema": Sampling(grammar=GrammarSpec(GrammarKind.JSON, SCHEMA)),
    "all": Sampling(
        presence_penalty=0.7,
        frequency_penalty=0.4,
        repetition_penalty=1.2,
        grammar=GrammarSpec(GrammarKind.JSON, SCHEMA),
    ),
}
LENGTH = 48


async def plain(engine: CloudEngine, prompt: list[int], sampling: Sampling) -> list[int]:
    return (await stateless.verify(engine, VerifyRound(prompt, [], sampling, LENGTH))).token_ids


async def in_rounds(engine: CloudEngine, prompt: list[int], right: list[int], sampling: Sampling) -> list[int]:
    """The answer in rounds with drafts of 0 to 7 tokens, some of them wrong."""
    rng = random.Random(len(prompt))
    drawn: list[int] = []
    while len(drawn) < len(right):
        draft = right[len(drawn) : len(drawn) + rng.randrange(8)]
        draft = [rng.randrange(engine.vocab_size) if rng.random() < 0.2 else token for token in draft]
        verdict = await stateless.verify(engine, VerifyRound(prompt + drawn, draft, sampling, rng.randrange(1, 4)))
        drawn += verdict.token_ids
        if verdict.finish_reason:
            break
    return drawn[: len(right)]


@pytest.mark.parametrize("name", SETTINGS)
async def test_greedy_rounds_give_what_one_request_gives(cloud_engine: CloudEngine, name: str) -> None:
    prompts = [list(cloud_engine.tokenizer.encode(text)) for text in ("Sort these", "Explain deep learning")]
    free = [await plain(cloud_engine, prompt, GREEDY) for prompt in prompts]
    right = [await plain(cloud_engine, prompt, SETTINGS[name]) for prompt in prompts]
    assert right != free  # the setting matters
    jobs = [
        in_rounds(cloud_engine, prompt, answer, replace(SETTINGS[name], prompt_tokens=len(prompt)))
        for prompt, answer in zip(prompts, right, strict=True)
    ]
    assert await asyncio.gather(*jobs) == right


async def test_without_the_answer_so_far_the_rounds_go_wrong(cloud_engine: CloudEngine) -> None:
    prompt = list(cloud_engine.tokenizer.encode("Explain deep learning"))
    for name in ("frequency", "schema"):
        right = await plain(cloud_engine, prompt, SETTINGS[name])
        assert await in_rounds(cloud_engine, prompt, right, SETTINGS[name]) != right


async def test_a_long_answer_is_prefilled_in_chunks_and_read_from_the_cache(cloud_engine: CloudEngine) -> None:
    """Chunked prefill and cached prefixes both extend past the start of the answer."""
    sampling = Sampling(frequency_penalty=0.5, prompt_tokens=3)
    rng = random.Random(3)
    long = [[rng.randrange(5, cloud_engine.vocab_size) for _ in range(200)] for _ in range(6)]
    fresh = await asyncio.gather(*(stateless.verify(cloud_engine, VerifyRound(ids, [], sampling, 4)) for ids in long))
    cached = [await stateless.verify(cloud_engine, VerifyRound(ids, [], sampling, 4)) for ids in long]
    assert [v.token_ids for v in fresh] == [v.token_ids for v in cached]
    drafted = [
        await stateless.verify(cloud_engine, VerifyRound(ids, verdict.token_ids[:3], sampling))
        for ids, verdict in zip(long, cached, strict=True)
    ]
    assert [v.token_ids for v in drafted] == [v.token_ids for v in cached]
    await cloud_engine.check_health()
