"""A session that goes on from an earlier one over a real socket: only what is new travels, whatever breaks."""

import asyncio

import numpy as np
import pytest

from common.cloud_client.split_connection import SplitLink
from common.cloud_client.split_session import SplitCloud, SplitSession
from common.errors import EndpointError
from common.types import GREEDY
from experiments.harness.delay_proxy import DelayProxy
from tests.common.test_split_session import DEADLINE, settled, split_cloud
from tests.support.split.fake_tail import HIDDEN, MANIFEST, FakeTail, fake_cloud, some_states, token_after

FIRST, KEPT = some_states(1, 0, 20), 12
NEXT = np.concatenate([FIRST[:KEPT], some_states(2, 0, 5)])


async def begun(cloud: SplitCloud) -> SplitSession:
    """A session that has been asked for the token after FIRST."""
    session = cloud.session(MANIFEST.fingerprint)
    session.send(FIRST)
    assert (await session.token(GREEDY, DEADLINE)).token_id == token_after(FIRST)
    return session


async def goes_on(session: SplitSession) -> int:
    """Asks for the token after NEXT; how many positions the cloud computed for it."""
    session.send(NEXT[session.positions :])
    token = await session.token(GREEDY, DEADLINE)
    assert token.token_id == token_after(NEXT)
    return token.computed


async def test_only_new_states_travel_and_the_other_positions_are_forgotten() -> None:
    async with fake_cloud(FakeTail(blocks=40)) as fake, split_cloud(fake.url) as cloud:
        first = await begun(cloud)
        async with first.successor(KEPT) as session:
            assert first.nbytes == 0
            assert session.nbytes == KEPT * HIDDEN * 2
            assert await goes_on(session) == len(NEXT) - KEPT
            assert 0 < session.bytes_up < first.bytes_up
            assert len(fake.contexts) == len(fake.pool) == 1
        await settled(fake)


async def test_one_that_is_never_used_sends_nothing_and_leaves_nothing() -> None:
    async with fake_cloud(FakeTail(blocks=40)) as fake, split_cloud(fake.url) as cloud:
        unused = (await begun(cloud)).successor(KEPT)
        async with unused.successor(KEPT - 2) as session:
            session.send(FIRST[KEPT - 2 : KEPT])  # what a later answer has in common with the first may end earlier
            assert await goes_on(session) == len(NEXT) - KEPT + 2
        assert unused.bytes_up == 0
        await settled(fake)
        (await begun(cloud)).successor(KEPT).close()
        await settled(fake)


def unreachable() -> SplitLink:
    raise EndpointError("unreachable, half a second ago")


async def test_what_one_could_not_send_is_sent_by_the_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the cloud would keep, in its place, what the first answer had sent there."""
    async with fake_cloud(FakeTail(blocks=40)) as fake, split_cloud(fake.url) as cloud:
        first = await begun(cloud)
        lost = first.successor(KEPT)
        with monkeypatch.context() as down:
            down.setattr(cloud, "link", unreachable)
            lost.send(NEXT[KEPT:])
        turn = np.concatenate([NEXT, some_states(3, 0, 2)])
        async with lost.successor(len(NEXT)) as session:
            session.send(turn[len(NEXT) :])
            token = await session.token(GREEDY, DEADLINE)
            assert (token.token_id, token.computed) == (token_after(turn), len(turn) - KEPT)
        assert lost.bytes_up == 0
        await settled(fake)


@pytest.mark.parametrize("seed", range(4))
async def test_a_connection_that_breaks_anywhere_leaves_no_stale_state(seed: int) -> None:
    """If a cut were a frame of its own, one that is lost would leave positions of the first answer in the second."""
    async with (
        fake_cloud(FakeTail(blocks=40, seconds=0.01)) as fake,
        DelayProxy("127.0.0.1", fake.server.port, 0.002) as proxy,
        split_cloud(proxy.url) as cloud,
    ):
        session = (await begun(cloud)).successor(KEPT)
        session.send(NEXT[KEPT:])
        await asyncio.sleep(0.003 * seed)
        await proxy.cut()
        assert (await session.token(GREEDY, DEADLINE)).token_id == token_after(NEXT)
        session.close()


async def test_a_cloud_that_has_forgotten_it_gets_all_states_again() -> None:
    async with fake_cloud(FakeTail(blocks=40)) as fake, split_cloud(fake.url) as cloud:
        first = await begun(cloud)
        fake.contexts.close(first.id)
        async with first.successor(KEPT) as session:
            assert await goes_on(session) == len(NEXT)


async def test_a_restarted_cloud_gets_all_states_again() -> None:
    async with fake_cloud(FakeTail(blocks=40)) as fake, split_cloud(fake.url) as cloud:
        first, port = await begun(cloud), fake.server.port
        await fake.server.stop()
        async with fake_cloud(FakeTail(blocks=40), port=port), first.successor(KEPT) as session:
            for _ in range(3):
                try:
                    assert await goes_on(session) == len(NEXT)
                    break
                except EndpointError:
                    await asyncio.sleep(0.6)
            else:
                raise AssertionError("never answered")


async def test_the_likeliest_tokens_come_only_when_they_are_asked_for() -> None:
    async with fake_cloud() as fake, split_cloud(fake.url) as cloud, cloud.session(MANIFEST.fingerprint) as session:
        session.send(some_states(1, 0, 9))
        token = await session.token(GREEDY, DEADLINE, top=3)
        assert [place for place, _ in token.top] == [token.token_id + place for place in range(3)]
        assert [logprob for _, logprob in token.top] == sorted((each for _, each in token.top), reverse=True)
        down = session.bytes_down
        session.send(some_states(1, 9, 10))
        assert (await session.token(GREEDY, DEADLINE)).top == []
        assert session.bytes_down - down < down
