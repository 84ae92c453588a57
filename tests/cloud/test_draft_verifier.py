"""The verify protocol on a real engine: sessions, repeats, stop strings and tokens, log-probabilities, sampling."""

import asyncio
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from cloud.draft_verifier import DraftVerifier
from cloud.engine.engine import CloudEngine
from cloud.verify import stateless
from cloud.verify.resident_pool import ResidentPool
from cloud.verify.round import VerifyRound
from common.types import GREEDY, Sampling, VerifyRequest

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = "Explain deep learning"


async def plain(engine: CloudEngine, sampling: Sampling = GREEDY, length: int = 40) -> tuple[list[int], list[int]]:
    prompt = list(engine.tokenizer.encode(PROMPT))
    return prompt, (await stateless.verify(engine, VerifyRound(prompt, [], sampling, length))).token_ids


async def answer(
    engine: CloudEngine, prompt: list[int], right: list[int], first: VerifyRequest
) -> tuple[list[int], str]:
    """The answer in rounds with drafts of 4 tokens, some of them wrong, and the reason for its end."""
    verifier, rng, drawn = DraftVerifier(engine), random.Random(5), list[int]()
    while len(drawn) < len(right):
        draft = [rng.randrange(engine.vocab_size) if rng.random() < 0.2 else t for t in right[len(drawn) :][:4]]
        response = await verifier.verify_draft(replace(first, new_token_ids=prompt + drawn, draft_token_ids=draft))
        drawn += response.token_ids
        if response.finish_reason:
            return drawn, response.stop_reason or response.finish_reason
    return drawn, "length"


async def test_a_repeated_round_has_the_same_answer_without_a_second_engine_run(cloud_engine: CloudEngine) -> None:
    prompt, _ = await plain(cloud_engine)
    verifier = DraftVerifier(cloud_engine)
    round_ = VerifyRequest(
        session="s", new_token_ids=prompt, max_tokens=4, sampling=Sampling(temperature=1.5), idempotency_key="1"
    )
    runs = 0
    generate = cloud_engine.generate

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal runs
        runs += 1
        return generate(*args, **kwargs)  # type: ignore[arg-type]

    cloud_engine.generate = counted  # type: ignore[method-assign, assignment]
    try:
        first = await verifier.verify_draft(round_)
        again = await asyncio.gather(*(verifier.verify_draft(round_) for _ in range(4)))
        assert all(response == first for response in again)
        assert runs == 1
        await verifier.verify_draft(replace(round_, idempotency_key=""))
        assert runs == 2
    finally:
        del cloud_engine.generate  # type: ignore[method-assign]


async def test_a_session_is_resident_from_its_first_round_on(cloud_engine: CloudEngine) -> None:
    prompt, right = await plain(cloud_engine)
    residents = ResidentPool(cloud_engine, limit=2, idle_seconds=60.0)
    verifier = DraftVerifier(cloud_engine, residents=residents)
    try:
        first = VerifyRequest(session="s", new_token_ids=prompt, draft_token_ids=right[:4])
        begun = await verifier.verify_draft(first)
        drawn = begun.token_ids
        went_on = await verifier.verify_draft(replace(first, new_token_ids=prompt + drawn, draft_token_ids=right[5:8]))
        assert (begun.form, went_on.form) == ("resident", "resident")
        assert (residents.opened, residents.continued) == (1, 1)
        assert drawn + went_on.token_ids == right[: len(drawn + went_on.token_ids)]
        alone = await verifier.verify_draft(replace(first, session=""))
        assert alone.form == "stateless"
    finally:
        await residents.close()


async def test_a_stop_string_ends_the_answer_at_the_token_that_completes_it(cloud_engine: CloudEngine) -> None:
    prompt, right = await plain(cloud_engine)
    decode = cloud_engine.tokenizer.decode
    text = decode(right)
    stop = text[len(text) // 2 :][:5]
    first = VerifyRequest(stop=[stop], sampling=Sampling(prompt_tokens=len(prompt)))
    drawn, reason = await answer(cloud_engine, prompt, right, first)
    assert reason == stop
    assert drawn == right[: len(drawn)]
    assert stop in decode(drawn)
    assert stop not in decode(drawn[:-1])


async def test_a_stop_token_ends_the_answer(cloud_engine: CloudEngine) -> None:
    prompt, right = await plain(cloud_engine)
    stop = right[10]
    drawn, reason = await answer(cloud_engine, prompt, right, VerifyRequest(stop_token_ids=[stop]))
    assert (drawn, reason) == (right[: right.index(stop) + 1], "stop")


async def test_logprobs_come_for_every_token_and_do_not_depend_on_drafts(cloud_engine: CloudEngine) -> None:
    prompt, right = await plain(cloud_engine, length=6)
    verifier = DraftVerifier(cloud_engine)
    asked = VerifyRequest(new_token_ids=prompt, logprobs=3)
    alone = await verifier.verify_draft(replace(asked, max_tokens=6))
    drafted = await verifier.verify_draft(replace(asked, draft_token_ids=right[:5]))
    assert alone.token_ids == drafted.token_ids == right
    assert alone.logprobs and drafted.logprobs
    for one, other, token in zip(alone.logprobs, drafted.logprobs, right, strict=True):
        assert one.token_id == other.token_id == one.top[0][0] == token  # greedy: the likeliest
        assert [i for i, _ in one.top] == [i for i, _ in other.top]
        assert len(one.top) == 3
        assert one.logprob == one.top[0][1] == pytest.approx(other.logprob, abs=1e-4)


async def test_a_verifier_given_a_path_owns_its_engine(
    monkeypatch: pytest.MonkeyPatch, cloud_engine: CloudEngine
) -> None:
    """As in the guide's example; starting a second real engine would only cost time, so the first one is used."""
    calls: list[str] = []

    async def start(self: CloudEngine) -> None:
        calls.append("start")
        self._llm = cloud_engine._llm

    async def close(self: CloudEngine) -> None:
        calls.append("close")

    monkeypatch.setattr(CloudEngine, "start", start)
    monkeypatch.setattr(CloudEngine, "close", close)
    verifier = DraftVerifier(str(Path(cloud_engine.model)))
    responses = [await verifier.verify_draft(VerifyRequest(prompt=PROMPT, draft_token_ids=[5, 6])) for _ in range(2)]
    await verifier.close()
    assert calls == ["start", "close"]
    assert all(0 <= response.acceptance_rate <= 1 for response in responses)
