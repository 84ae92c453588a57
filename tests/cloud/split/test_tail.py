"""The demo model's tail in vLLM, over a real WebSocket, answers as the whole model does, also after losses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from cloud.split.context_manager import EvictionReason
from cloud.split.pool import TailPool
from cloud.split.service import SplitService
from common.cloud_client.split_session import SplitCloud
from common.config_values import Secret, ServerConfig
from common.errors import EndpointError, ForeignSession
from common.http.client import HTTPClient
from common.http_server import HTTPServer
from common.protocol.split_frames import MAX_TOP
from common.types import GREEDY, Sampling, StateEncoding
from tests.support.split.split_parts import PATIENCE, WholeModel, answer, cut_demo, served

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPTS = ("What is AI?", "Explain quantum computing", "What is the capital of France?", "Sort these: 9 4 7 1")
KEYS = ("one", "two")


@pytest.fixture(scope="session")
def whole() -> WholeModel:
    return WholeModel()


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_demo(tmp_path_factory.mktemp("tail"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tail(pieces: Path) -> AsyncIterator[tuple[HTTPServer, SplitService]]:
    async with served(pieces, ServerConfig(api_keys=[Secret(key) for key in KEYS])) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def cloud(tail: tuple[HTTPServer, SplitService]) -> AsyncIterator[SplitCloud]:
    async with HTTPClient(f"http://127.0.0.1:{tail[0].port}", api_key=Secret("one")) as http, SplitCloud(http) as cloud:
        yield cloud


@pytest.fixture
def fingerprint(tail: tuple[HTTPServer, SplitService]) -> str:
    return tail[1].manifest.fingerprint


async def test_it_answers_as_the_whole_model(cloud: SplitCloud, fingerprint: str, whole: WholeModel) -> None:
    for prompt in PROMPTS:
        ids = whole.tokens(prompt)
        async with cloud.session(fingerprint, StateEncoding.FP32) as session:
            drawn = await answer(whole, session, ids, 8)
        for number, token in enumerate(drawn):
            known, logprob = whole.likeliest(ids)
            assert token.token_id == known
            assert token.logprob == pytest.approx(logprob, abs=1e-3)
            assert token.confidence == pytest.approx(np.exp(token.logprob))
            assert (token.computed, token.cached) == ((len(ids), 0) if not number else (1, len(ids) - 1))
            ids.append(known)


async def test_only_new_positions_of_a_conversation_are_computed(
    cloud: SplitCloud, fingerprint: str, whole: WholeModel
) -> None:
    """Between two requests many positions may be added: confident tokens of the edge, or the next question."""
    ids, sent, total = whole.tokens(PROMPTS[0]), 0, 0
    async with cloud.session(fingerprint, StateEncoding.FP32) as session:
        for more in (PROMPTS[1], "", "Explain deep learning " * 30, PROMPTS[2]):
            (token,) = await answer(whole, session, ids, 1, sent=sent)
            assert token.token_id == whole.likeliest(ids)[0]
            assert (token.computed, token.cached) == (len(ids) - sent, sent)
            sent, total = len(ids), total + token.computed
            ids += [token.token_id, *whole.tokens(more)]
    assert total == sent


@pytest.mark.parametrize("keep", [1, 31, 32, 40, 70])
async def test_a_live_request_goes_back_to_any_position_and_on_from_there(
    cloud: SplitCloud, fingerprint: str, whole: WholeModel, keep: int
) -> None:
    """Across blocks of 32 positions: what came after is computed anew, and what came before is not."""
    first = whole.tokens("Explain deep learning " * 30)[:70]
    async with cloud.session(fingerprint, StateEncoding.FP32) as session:
        await answer(whole, session, first, 2)
        ids = [*first[:keep], *whole.tokens(PROMPTS[2])]
        async with session.successor(keep) as second:
            drawn = await answer(whole, second, ids, 4, sent=keep)
    for number, token in enumerate(drawn):
        assert token.token_id == whole.likeliest(ids)[0]
        assert token.logprob == pytest.approx(whole.likeliest(ids)[1], abs=1e-3)
        assert (token.computed, token.cached) == ((1, len(ids) - 1) if number else (len(ids) - keep, keep))
        ids.append(token.token_id)


async def test_the_likeliest_tokens_are_the_whole_models_whatever_was_asked_for_before(
    cloud: SplitCloud, fingerprint: str, whole: WholeModel
) -> None:
    ids, sent = whole.tokens(PROMPTS[1]), 0
    async with cloud.session(fingerprint, StateEncoding.FP32) as session:
        for top in (0, 5, 0, MAX_TOP, 1):
            session.send(whole.states(ids)[sent:])
            token = await session.token(Sampling(temperature=2.0, seed=top), PATIENCE, top)
            assert len(token.top) == top
            for place, logprob in token.top:
                assert logprob == pytest.approx(whole.logprob(ids, place), abs=1e-3)
            if top:
                assert token.top[0][0] == whole.likeliest(ids)[0]
                assert token.top == sorted(token.top, key=lambda likely: -likely[1])
            sent = len(ids)
            ids.append(token.token_id)


@pytest.mark.parametrize("kind", [StateEncoding.FP16, StateEncoding.INT8])
async def test_smaller_encodings_give_nearly_the_same_log_probabilities(
    cloud: SplitCloud, fingerprint: str, whole: WholeModel, kind: StateEncoding
) -> None:
    near = 0.02 if kind is StateEncoding.FP16 else 0.5
    for prompt in PROMPTS:
        ids = whole.tokens(prompt)
        async with cloud.session(fingerprint, kind) as session:
            for token in await answer(whole, session, ids, 6):
                known, logprob = whole.likeliest(ids)
                if token.token_id == known:
                    assert abs(token.logprob - logprob) < near
                ids.append(token.token_id)


async def test_simultaneous_sessions_are_answered_as_single_ones(
    cloud: SplitCloud, fingerprint: str, whole: WholeModel
) -> None:
    async def one(prompt: str) -> list[int]:
        async with cloud.session(fingerprint) as session:
            return [token.token_id for token in await answer(whole, session, whole.tokens(prompt), 8)]

    prompts = [f"{prompt} {number}" for number in range(3) for prompt in PROMPTS]
    alone = [await one(prompt) for prompt in prompts]
    assert await asyncio.gather(*map(one, prompts)) == alone


async def test_sessions_that_ask_at_once_share_the_steps_of_the_engine(
    cloud: SplitCloud, tail: tuple[HTTPServer, SplitService], whole: WholeModel
) -> None:
    """Eight edges' worth of sessions, eight tokens each in turn: one by one these were 64 steps."""
    engine, fingerprint = tail[1].engine, tail[1].manifest.fingerprint
    prompts = [whole.tokens(f"{prompt} {number}") for number in range(2) for prompt in PROMPTS]
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(cloud.session(fingerprint)) for _ in prompts]
        steps = engine.steps()
        for _ in range(8):
            for session, ids in zip(sessions, prompts, strict=True):
                session.send(whole.states(ids)[session.positions :])
            drawn = await asyncio.gather(*(session.token(GREEDY, PATIENCE) for session in sessions))
            for ids, token in zip(prompts, drawn, strict=True):
                ids.append(token.token_id)
        assert 8 <= engine.steps() - steps < 40


async def test_sampling_follows_the_distribution_and_a_seed_repeats(
    cloud: SplitCloud, fingerprint: str, whole: WholeModel
) -> None:
    ids = whole.tokens("Explain")
    states = whole.states(ids)

    async def draw(sampling: Sampling) -> int:
        async with cloud.session(fingerprint, StateEncoding.FP32) as session:
            session.send(states)
            return (await session.token(sampling, PATIENCE)).token_id

    known, logprob = whole.likeliest(ids)
    hot = Sampling(temperature=2.0, top_k=3)
    drawn = [await draw(hot) for _ in range(40)]
    assert 1 < len(set(drawn)) <= 3
    seeded = Sampling(temperature=1.5, top_p=0.95, seed=11)
    assert len({await draw(seeded) for _ in range(4)}) == 1
    assert len({await draw(Sampling(temperature=2.0, seed=seed)) for seed in range(20)}) > 1
    assert {await draw(Sampling(temperature=2.0, top_k=1)) for _ in range(3)} == {known}
    async with cloud.session(fingerprint, StateEncoding.FP32) as session:
        session.send(states)
        token = await session.token(Sampling(temperature=2.0, top_k=1), PATIENCE)
    assert token.logprob == pytest.approx(logprob, abs=1e-3)  # of the model's own distribution, whatever the sampling


async def test_a_seeded_token_of_a_grown_session_is_the_one_that_a_new_session_draws(
    cloud: SplitCloud, fingerprint: str, whole: WholeModel
) -> None:
    ids, sampling = whole.tokens("Explain"), Sampling(temperature=2.0, seed=3)
    async with cloud.session(fingerprint, StateEncoding.FP32) as grown:
        drawn = await answer(whole, grown, ids, 6, sampling)
    for token in drawn:
        async with cloud.session(fingerprint, StateEncoding.FP32) as new:
            assert [one.token_id for one in await answer(whole, new, ids, 1, sampling)] == [token.token_id]
        ids.append(token.token_id)


async def test_evicted_states_are_sent_again_and_give_the_same_tokens(
    cloud: SplitCloud, tail: tuple[HTTPServer, SplitService], whole: WholeModel
) -> None:
    service = tail[1]
    ids = whole.tokens(PROMPTS[1])
    async with cloud.session(service.manifest.fingerprint) as session:
        sent = 0
        for lose in (
            service.contexts.forget,
            service.contexts.close,
            lambda _: service.pool.drop_all(),
            lambda _: None,
        ):
            (token,) = await answer(whole, session, ids, 1, sent=sent)
            assert token.token_id == whole.likeliest(ids)[0]
            assert token.computed == len(ids)
            sent = len(ids)
            ids.append(token.token_id)
            lose(session.id)


async def test_another_tenants_session_is_refused(
    cloud: SplitCloud, tail: tuple[HTTPServer, SplitService], whole: WholeModel
) -> None:
    server, service = tail
    ids = whole.tokens(PROMPTS[0])
    async with (
        HTTPClient(f"http://127.0.0.1:{server.port}", api_key=Secret("two")) as http,
        SplitCloud(http) as theirs,
        cloud.session(service.manifest.fingerprint) as session,
        theirs.session(service.manifest.fingerprint) as thief,
    ):
        (token,) = await answer(whole, session, ids, 1)
        thief.id = session.id
        thief.send(whole.states([*ids, token.token_id])[-1:])
        with pytest.raises(ForeignSession):
            await thief.token(GREEDY, PATIENCE)
        (token,) = await answer(whole, session, [*ids, token.token_id], 1, sent=len(ids))
        assert token.cached == len(ids)


async def test_stats_count_tokens_positions_and_bytes(
    cloud: SplitCloud, tail: tuple[HTTPServer, SplitService], whole: WholeModel
) -> None:
    service = tail[1]
    before = service.stats()
    ids = whole.tokens(PROMPTS[0])
    async with cloud.session(service.manifest.fingerprint) as session:
        await answer(whole, session, ids, 3)
        stats = service.stats()
        assert stats["tokens"] - before["tokens"] == 3
        assert stats["computed"] - before["computed"] == len(ids) + 2
        assert stats["layer_tokens"] - before["layer_tokens"] == 6 * (len(ids) + 2)
        assert stats["cached"] - before["cached"] == 2 * len(ids) + 1
        assert stats["bytes"] == 0 and stats["live_requests"] > 0


async def test_after_a_killed_engine_the_answer_goes_on_with_a_new_upload(
    cloud: SplitCloud, tail: tuple[HTTPServer, SplitService], whole: WholeModel
) -> None:
    service = tail[1]
    ids = whole.tokens(PROMPTS[1])
    async with cloud.session(service.manifest.fingerprint) as session:
        await answer(whole, session, ids, 1)
        ids.append(whole.likeliest(ids)[0])
        before = service.restarts
        service.engine.kill()
        while service.restarts == before:
            await asyncio.sleep(0.05)
        with pytest.raises(EndpointError, match="started again"):
            await answer(whole, session, ids, 1, sent=len(ids) - 1)
        await service.supervisor.wait_up()
        (token,) = await answer(whole, session, ids, 1, sent=len(ids))
        assert (token.token_id, token.computed) == (whole.likeliest(ids)[0], len(ids))


NARROW = {"num_gpu_blocks_override": 9, "max_model_len": 160, "max_num_batched_tokens": 160}


async def crowd(port: int, fingerprint: str, whole: WholeModel) -> None:
    """Six sessions at the end of their second block grow into a third one; the cache holds eight blocks in total."""
    async with HTTPClient(f"http://127.0.0.1:{port}") as http, SplitCloud(http) as cloud:

        async def one(number: int) -> None:
            ids = whole.tokens(f"{PROMPTS[number % 4]} {number} " * 20)[:62]
            async with cloud.session(fingerprint, StateEncoding.FP32) as session:
                for token in await answer(whole, session, ids, 5):
                    assert token.token_id == whole.likeliest(ids)[0]
                    ids.append(token.token_id)

        for failure in await asyncio.gather(*map(one, range(6)), return_exceptions=True):
            if failure is not None:
                raise failure


async def test_sessions_that_exceed_the_kv_cache_are_answered_in_turns(pieces: Path, whole: WholeModel) -> None:
    async with served(pieces, engine_args=NARROW) as (server, service):
        await crowd(server.port, service.manifest.fingerprint, whole)
        assert service.restarts == 0
        assert service.contexts.dropped[EvictionReason.KV] > 0


@pytest.mark.long
async def test_without_the_bound_all_would_wait_for_each_others_kv_forever(
    pieces: Path, whole: WholeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TailPool, "_fits", lambda *_: True)
    monkeypatch.setattr("tests.support.split.split_parts.PATIENCE", 15.0)
    async with served(pieces, engine_args=NARROW) as (server, service):
        with pytest.raises(EndpointError):
            await crowd(server.port, service.manifest.fingerprint, whole)
