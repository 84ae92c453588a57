"""Clients of one cloud, and recordings of a pair that they repeat: on fake clouds, and on real servers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial

import pytest

from benchmarks.fake_cloud import serving
from benchmarks.toy_model import verify
from common.cloud_client.pool import CloudPool
from common.config_schema import CommunicationConfig, Config
from common.errors import ConfigError
from common.types import GREEDY
from experiments.capacity import __main__ as capacity
from experiments.capacity import clients
from experiments.capacity.clients import stream_answers
from experiments.capacity.recording import PairRecorder, RecordingVerifier
from experiments.fleet.load import DraftedAnswer, FleetTally, TenantLoad
from tests.conftest import Servers
from tests.waiting import until


def test_tokens_outside_the_counted_seconds_do_not_count() -> None:
    tally = FleetTally(commits=[(0.5, 100), (1.0, 6), (2.9, 4), (3.0, 100)])
    tally.answers["stream", "answered"] = 3
    found = clients.point(tally, clients=5, began=1.0, seconds=2.0, spent=0.5)
    assert (found.speed, found.busy) == (1.0, 0.25)
    assert found.answers == {"answered": 3}


async def test_a_client_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "WARM_SECONDS", 0.01)

    async def fails(number: int, tally: FleetTally) -> None:
        raise ConfigError("no such cloud")

    with pytest.raises(ConfigError, match="no such cloud"):
        await clients.measure(fails, 2, 0.01)


async def test_a_recording_has_what_the_edge_kept_before_each_draft_and_after_the_last() -> None:
    async with serving() as cloud, CloudPool(CommunicationConfig(cloud_endpoint=cloud.url)) as clouds:
        prompt = [5, 6]
        recording = RecordingVerifier(clouds, prompt)
        committed = [*prompt, 30, 31]
        first = verify(committed, [], 1).token_ids
        committed += (await recording.verify(committed, first, GREEDY, 1)).token_ids
        rounds = recording.completed([*committed, 40])
    assert [one.kept for one in rounds] == [[30, 31], [40]]
    assert rounds[0].draft == first == rounds[0].committed[: len(first)]
    assert (rounds[1].draft, rounds[1].committed) == ([], [])
    assert DraftedAnswer(prompt, rounds).token_ids == [*committed[2:], 40]


@pytest.mark.parametrize("text", ["2,4,8", "1,8", "0,1,2"])
def test_numbers_of_clients_need_a_lone_one_and_enough_for_a_fit(text: str) -> None:
    with pytest.raises(ConfigError):
        capacity.counts_of(text)
    assert capacity.counts_of("8,1,1,64") == [1, 8, 64]


def test_the_cloud_alone_is_always_compared() -> None:
    assert capacity.systems_of("gated,ngram") == ["cloud", "gated", "ngram"]
    with pytest.raises(ConfigError, match="turbo"):
        capacity.systems_of("turbo")


async def test_recorded_answers_are_repeated_by_streams_and_by_simulated_edges(servers: Servers) -> None:
    """A real edge and a real cloud: every repeated answer, lossless and gated, is the recorded one."""
    recorder = PairRecorder(servers.edge, servers.clouds, Config())
    questions = ["What is AI?", "Explain gravity", "Can a whale sing?"]
    lossless, gated = [await recorder.record(questions, gate, 24) for gate in (False, True)]
    assert recorder.estimates.draft_seconds > 0
    assert sum(len(one.kept) for answer in gated for one in answer.rounds) > 0
    load, where = TenantLoad("one", 1, edges=1, draft_ms=0.1), CommunicationConfig(cloud_endpoint=servers.cloud_url)
    for client in (
        partial(stream_answers, servers.cloud, lossless, 0),
        partial(capacity.simulated_edge, load, where, lossless, 0),
        partial(capacity.simulated_edge, load, where, gated, 0),
    ):
        assert set(await until_answered(client)) == {"answered"}


async def until_answered(client: Callable[[FleetTally], Coroutine[None, None, None]]) -> Counter[str]:
    """The outcomes of a client's first answers."""
    tally = FleetTally()
    asking = asyncio.create_task(client(tally))
    try:
        await until(lambda: asking.done() or tally.answers.total() >= 4)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    return Counter({outcome: number for (_, outcome), number in tally.answers.items()})
