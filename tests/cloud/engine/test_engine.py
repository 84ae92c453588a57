"""The cloud engine on the demo model: drafts change the speed, never the tokens."""

import asyncio
import gc
import random
from pathlib import Path
from typing import Any

import pytest

from cloud.draft_verifier import DraftVerifier
from cloud.engine.engine import CloudEngine
from cloud.verify import stateless
from cloud.verify.round import VerifyRound, seed_at, vllm_params
from cloud.verify.sessions import SessionTable
from common.errors import (
    ConfigError,
    ContextLengthError,
    EngineError,
    GrammarError,
    PrefixUnknown,
    RequestError,
    StartError,
)
from common.grammar.spec import GrammarKind, GrammarSpec
from common.protocol.prefix_hash import prefix_hash
from common.types import GREEDY, Sampling, Verdict, VerifyRequest
from tests.conftest import CLOUD_CONTEXT as CONTEXT
from tests.conftest import CLOUD_MODEL as MODEL

QUESTIONS = (
    "What is AI?",
    "Explain quantum computing",
    "What is machine learning?",
    "Explain deep learning",
    "What is the capital of France?",
    "Sort these numbers: 5 3 9 1",
)
HOT = Sampling(temperature=2.0)

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def verify(
    engine: CloudEngine,
    prompt: list[int],
    draft: list[int],
    sampling: Sampling = GREEDY,
    max_tokens: int = 1,
    **other: Any,
) -> Verdict:
    return await stateless.verify(engine, VerifyRound(prompt, draft, sampling, max_tokens, **other))


def texts(engine: CloudEngine) -> list[str]:
    """The questions in the model's chat template, to which its answers are long."""
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [engine.tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in asked]


def prompts(engine: CloudEngine) -> list[list[int]]:
    return [list(engine.tokenizer.encode(text, add_special_tokens=False)) for text in texts(engine)]


async def plain(engine: CloudEngine, prompt: list[int], max_tokens: int = 40) -> list[int]:
    return (await verify(engine, prompt, [], GREEDY, max_tokens)).token_ids


async def test_the_questions_have_answers_long_enough_for_drafts(cloud_engine: CloudEngine) -> None:
    lengths = [len(await plain(cloud_engine, prompt)) for prompt in prompts(cloud_engine)]
    assert min(lengths) > 4 and max(lengths) == 40, lengths


async def test_a_right_draft_is_accepted_and_followed_by_a_bonus_token(cloud_engine: CloudEngine) -> None:
    prompt = prompts(cloud_engine)[1]
    right = await plain(cloud_engine, prompt)
    verdict = await verify(cloud_engine, prompt, right[:3], GREEDY)
    assert (verdict.token_ids, verdict.accepted) == (right[:4], 3)


async def test_a_wrong_token_is_replaced_and_ends_the_round(cloud_engine: CloudEngine) -> None:
    prompt = prompts(cloud_engine)[1]
    right = await plain(cloud_engine, prompt)
    verdict = await verify(cloud_engine, prompt, [right[0], right[1] ^ 1, right[2]], GREEDY)
    assert (verdict.token_ids, verdict.accepted) == (right[:2], 1)


async def test_drafts_beyond_a_steps_room_are_cut_and_stay_exact(cloud_engine: CloudEngine) -> None:
    rng = random.Random(7)
    asked = [[rng.randrange(5, cloud_engine.vocab_size) for _ in range(150)] for _ in range(24)]
    right = [await plain(cloud_engine, prompt, 17) for prompt in asked]
    jobs = [
        verify(cloud_engine, prompt, answer[:16], GREEDY, use_kv_cache=False)
        for prompt, answer in zip(asked, right, strict=True)
    ]
    verdicts = await asyncio.gather(*jobs)
    for verdict, answer in zip(verdicts, right, strict=True):
        assert verdict.token_ids
        assert verdict.token_ids == answer[: len(verdict.token_ids)]
    await cloud_engine.check_health()


async def test_every_sampling_filter_works_with_and_without_drafts(cloud_engine: CloudEngine) -> None:
    prompt = prompts(cloud_engine)[0]
    right = await plain(cloud_engine, prompt)
    settings = [
        Sampling(temperature=t, top_k=k, top_p=p, seed=s)
        for t in (0.0, 0.7)
        for k in (0, 6)
        for p in (1.0, 0.9)
        for s in (None, 1)
    ]
    drafts: list[list[int]] = [[], right[:4]]
    for draft in drafts:  # a step in which no request has a draft, then one in which all have
        await asyncio.gather(*(verify(cloud_engine, prompt, draft, sampling) for sampling in settings))
    await asyncio.gather(*(verify(cloud_engine, prompt, draft, s) for s in settings for draft in drafts))
    assert await plain(cloud_engine, prompt) == right


async def test_a_seed_repeats_a_round_and_differs_between_positions(cloud_engine: CloudEngine) -> None:
    prompt = prompts(cloud_engine)[0]
    seeded = Sampling(temperature=2.0, seed=5)
    first, again = [await verify(cloud_engine, prompt, [], seeded, 8) for _ in range(2)]
    assert first.token_ids == again.token_ids
    assert len({seed_at(seed, position) for seed in range(10) for position in range(10)}) == 100


async def test_a_seeded_prompt_that_takes_several_steps_draws_what_it_draws_alone(cloud_engine: CloudEngine) -> None:
    """A step that ends within a prompt draws an unused token; an engine that cannot rewind its generator would end."""
    rng = random.Random(11)
    asked = [[rng.randrange(5, cloud_engine.vocab_size) for _ in range(200)] for _ in range(6)]
    seeded = [Sampling(temperature=2.0, seed=n) for n in range(6)]
    jobs = [
        verify(cloud_engine, prompt, [], sampling, 4, use_kv_cache=False)
        for prompt, sampling in zip(asked, seeded, strict=True)
    ]
    together = await asyncio.gather(*jobs)
    alone = [
        (await verify(cloud_engine, prompt, [], sampling, 4)).token_ids
        for prompt, sampling in zip(asked, seeded, strict=True)
    ]
    assert [verdict.token_ids for verdict in together] == alone


async def running_and_kv(engine: CloudEngine) -> tuple[float, float]:
    """Number of running requests and used share of the KV cache, after a step caused here."""
    await verify(engine, [1, 2, 3], [], GREEDY)
    stats = engine.stats()
    return stats["running"], stats["kv_cache_usage"]


async def test_a_cancelled_verify_frees_its_place_and_kv(cloud_engine: CloudEngine) -> None:
    prompt = prompts(cloud_engine)[0]
    # Nothing but the cancellation ends these here.
    endless = vllm_params(VerifyRound(prompt, [], HOT, 200), ignore_eos=True)
    jobs = [asyncio.create_task(anext(cloud_engine.generate(prompt, endless))) for _ in range(4)]
    async with asyncio.timeout(60):
        while (await running_and_kv(cloud_engine))[0] < len(jobs):
            pass
        assert (await running_and_kv(cloud_engine))[1] > 0
        for left, job in reversed(list(enumerate(jobs))):
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            assert (await running_and_kv(cloud_engine))[0] == left
    assert await running_and_kv(cloud_engine) == (0, 0)


async def test_the_prefix_cache_is_read_only_when_asked(cloud_engine: CloudEngine) -> None:
    prompt = [n + 5 for n in range(100)]
    await verify(cloud_engine, prompt, [], GREEDY)
    hits = [cloud_engine.stats()["prefix_cache_hits"]]
    for use_kv_cache in (False, True):
        await verify(cloud_engine, prompt, [], GREEDY, use_kv_cache=use_kv_cache)
        hits.append(cloud_engine.stats()["prefix_cache_hits"])
    assert hits[0] == hits[1] < hits[2]


async def test_the_context_ends_an_answer_and_bounds_a_prompt(cloud_engine: CloudEngine) -> None:
    prompt = [n + 5 for n in range(CONTEXT)]
    last = await verify(cloud_engine, prompt[:-1], [], GREEDY, 5)
    assert (len(last.token_ids), last.finish_reason) == (1, "length")
    cut = await verify(cloud_engine, prompt[:-2], [7, 7], GREEDY)
    assert 1 <= len(cut.token_ids) <= 2
    for length, draft in ((CONTEXT, []), (CONTEXT - 4, [7] * 5)):
        with pytest.raises(ContextLengthError):
            await verify(cloud_engine, prompt[:length], draft, GREEDY)


async def test_the_engine_does_not_change_the_lists_it_gets(cloud_engine: CloudEngine) -> None:
    prompt, draft = [11, 12, 13], [14, 15]
    await verify(cloud_engine, prompt, draft, GREEDY)
    assert (prompt, draft) == ([11, 12, 13], [14, 15])


async def test_a_session_continues_from_the_prefix_that_both_sides_hold(cloud_engine: CloudEngine) -> None:
    verifier = DraftVerifier(cloud_engine, SessionTable())
    prompt = prompts(cloud_engine)[1]
    right = await plain(cloud_engine, prompt)
    first = await verifier.verify_draft(
        VerifyRequest(session="s", new_token_ids=prompt, draft_token_ids=[right[0], right[1] ^ 1])
    )
    assert (first.token_ids, first.accepted, first.correction_position) == (right[:2], 1, 1)
    held = prompt + first.token_ids
    again = VerifyRequest(
        session="s", prefix_length=len(held), prefix_hash=prefix_hash(held), draft_token_ids=right[2:4]
    )
    second = await verifier.verify_draft(again)
    assert (second.token_ids, second.acceptance_rate, second.correction_position) == (right[2:5], 1.0, None)
    with pytest.raises(PrefixUnknown):
        await DraftVerifier(cloud_engine, SessionTable()).verify_draft(again)


async def test_text_is_verified_like_its_tokens(cloud_engine: CloudEngine) -> None:
    verifier = DraftVerifier(cloud_engine, SessionTable())
    prompt = prompts(cloud_engine)[0]
    right = await plain(cloud_engine, prompt)
    text = texts(cloud_engine)[0]
    response = await verifier.verify_draft(VerifyRequest(prompt=text, draft_token_ids=right[:2]))
    assert response.token_ids == right[:3]


@pytest.mark.parametrize(
    ("param", "request_"),
    [
        ("prompt", VerifyRequest()),
        ("new_token_ids", VerifyRequest(session="s")),
        ("new_token_ids", VerifyRequest(new_token_ids=[-1])),
        ("new_token_ids", VerifyRequest(new_token_ids=[10**6])),
        ("draft_token_ids", VerifyRequest(new_token_ids=[1], draft_token_ids=[10**6])),
        ("draft_token_ids", VerifyRequest(new_token_ids=[1], draft_token_ids=[2] * 17)),
        ("prefix_length", VerifyRequest(session="s", prefix_length=-1)),
        ("max_tokens", VerifyRequest(new_token_ids=[1], max_tokens=0)),
        ("sampling.temperature", VerifyRequest(new_token_ids=[1], sampling=Sampling(temperature=-0.1))),
        ("sampling.top_p", VerifyRequest(new_token_ids=[1], sampling=Sampling(top_p=0.0))),
        ("sampling.top_k", VerifyRequest(new_token_ids=[1], sampling=Sampling(top_k=-1))),
        ("sampling.top_k", VerifyRequest(new_token_ids=[1], sampling=Sampling(top_k=2**31))),
        ("sampling.min_p", VerifyRequest(new_token_ids=[1], sampling=Sampling(min_p=0.1))),
        ("sampling.temperature", VerifyRequest(new_token_ids=[1], sampling=Sampling(temperature=float("nan")))),
        ("sampling.temperature", VerifyRequest(new_token_ids=[1], sampling=Sampling(temperature=float("inf")))),
        ("sampling.presence_penalty", VerifyRequest(new_token_ids=[1], sampling=Sampling(presence_penalty=3.0))),
        ("sampling.frequency_penalty", VerifyRequest(new_token_ids=[1], sampling=Sampling(frequency_penalty=-3.0))),
        ("sampling.repetition_penalty", VerifyRequest(new_token_ids=[1], sampling=Sampling(repetition_penalty=0.0))),
        ("sampling.prompt_tokens", VerifyRequest(new_token_ids=[1], sampling=Sampling(prompt_tokens=-1))),
        ("stop", VerifyRequest(new_token_ids=[1], stop=[""])),
        ("stop", VerifyRequest(new_token_ids=[1], stop=["a"] * 17)),
        ("stop_token_ids", VerifyRequest(new_token_ids=[1], stop_token_ids=[-1])),
        ("logprobs", VerifyRequest(new_token_ids=[1], logprobs=21)),
        ("session", VerifyRequest(new_token_ids=[1], session="s" * 129)),
        ("draft_tokens", VerifyRequest(new_token_ids=[1], draft_tokens=["word "] * 99)),
    ],
)
async def test_a_wrong_request_is_refused_by_the_name_of_its_field(
    cloud_engine: CloudEngine, param: str, request_: VerifyRequest
) -> None:
    with pytest.raises(RequestError) as caught:
        await DraftVerifier(cloud_engine, SessionTable()).verify_draft(request_)
    assert caught.value.param == param


async def test_what_only_vllm_refuses_is_a_request_error(cloud_engine: CloudEngine) -> None:
    for sampling in (Sampling(temperature=1000.0), Sampling(grammar=GrammarSpec(GrammarKind.JSON, "{no schema"))):
        with pytest.raises(RequestError):
            await verify(cloud_engine, [1], [], sampling)
    assert await verify(cloud_engine, [1], [])


async def test_an_answer_that_its_grammar_does_not_allow_is_refused_and_does_not_end(cloud_engine: CloudEngine) -> None:
    spec = GrammarSpec(GrammarKind.JSON, '{"type": "boolean"}')
    committed = cloud_engine.tokenizer.encode("Is fire hot? true false")
    for draft in ([], [5, 6]):
        with pytest.raises(GrammarError, match="does not allow the answer so far"):
            await verify(cloud_engine, committed, draft, Sampling(grammar=spec, prompt_tokens=len(committed) - 3))
    assert (await verify(cloud_engine, committed, [], Sampling(grammar=spec, prompt_tokens=len(committed)))).token_ids


@pytest.mark.parametrize(("key", "hint"), [("max_model_length", "max_model_len"), ("scheduler_cls", "this project")])
async def test_a_wrong_engine_argument_is_refused_with_a_hint(key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"^cloud\.engine_args\.{key}: .*{hint}"):
        CloudEngine(str(MODEL), args={key: 1})


async def test_a_missing_model_fails_the_start_in_one_line(tmp_path: Path) -> None:
    for model in (tmp_path, tmp_path / "absent"):
        engine = CloudEngine(str(model))
        with pytest.raises(StartError) as caught:
            await engine.start()
        assert str(model) in caught.value.message
        assert "\n" not in caught.value.message
        with pytest.raises(EngineError):
            await verify(engine, [1], [], GREEDY)


async def test_what_vllm_keeps_is_not_walked_at_each_full_run_of_the_garbage_collector(
    cloud_engine: CloudEngine,
) -> None:
    assert await verify(cloud_engine, [1], [])
    assert gc.get_freeze_count() > len(gc.get_objects())
