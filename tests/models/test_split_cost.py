"""The cost model of cuts: its means are those of simulated answers, its bytes those that a split session sends."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from common.cloud_client import split_traffic as traffic
from common.cloud_client.split_session import SplitCloud
from common.http.client import HTTPClient
from common.types import GREEDY, StateEncoding
from models.partition.split_cost import (
    EngineSpeed,
    ModelSizes,
    NetworkSpeed,
    PlannedExit,
    Surroundings,
    cloud_alone_ms,
    edge_alone_ms,
    predict,
)
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.fake_tail import HIDDEN, MANIFEST, VOCABULARY, FakeTail, fake_cloud, some_states
from tests.support.split.split_answers import NEVER, QUESTIONS, engine_of, run

MODEL = ModelSizes(layers=8, hidden=256, vocabulary=4096, head=1.3)
AROUND = Surroundings(
    edge=EngineSpeed(0.7, 0.4, 0.3),
    cloud=EngineSpeed(0.2, 3.0, 0.1),
    network=NetworkSpeed(14, 1),
    encoding=StateEncoding.FP16,
    prompt=20,
    tokens=12,
)
EXITS = [PlannedExit(2, 0.5, 1.3), PlannedExit(3, 0.7, 1.3), PlannedExit(6, 0.8, 1.4)]


def simulated(exits: list[PlannedExit], around: Surroundings, chance: random.Random) -> tuple[float, float, float, int]:
    """One answer, token by token: milliseconds at the edge, of the network and in the cloud, and bytes up."""
    edge = network = cloud = 0.0
    up, held, sent, asks = 0, [0] * (len(exits) + 1), 0, 0
    for number in range(around.tokens):
        luck, end = chance.random(), around.prompt + number
        edge += around.edge.ms(exits[0].layers, end - held[0]) + exits[0].work * around.edge.layer_ms
        held[0] = end
        if luck < exits[0].rate:
            continue
        size = traffic.states_bytes(sent, end - sent, MODEL.hidden, around.encoding)
        up += size + (0 if sent else traffic.open_bytes(around.encoding))
        upload, sent, rest = (end - sent) * MODEL.hidden * 2 * 8e-3 / around.network.uplink_mbit, end, 0.0
        for at, (before, exit) in enumerate(itertools.pairwise(exits), 1):
            rest += around.edge.ms(exit.layers - before.layers, end - held[at]) + exit.work * around.edge.layer_ms
            held[at] = end
            if luck < exit.rate:
                break
        else:
            network += around.network.rtt_ms + max(0.0, upload - rest)
            cloud += around.cloud.ms(MODEL.layers - exits[0].layers, end - held[-1])
            cloud += MODEL.head * around.cloud.layer_ms
            held[-1], up, asks = end, up + traffic.ask_bytes(asks, end), asks + 1
        edge += rest
    return edge, network, cloud, up


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_means_are_those_of_answers_that_are_simulated_token_by_token(count: int) -> None:
    exits, chance = EXITS[:count], random.Random(count)
    answers = [simulated(exits, AROUND, chance) for _ in range(6000)]
    edge, network, cloud, up = (sum(of) / len(answers) / AROUND.tokens for of in zip(*answers, strict=True))
    cost = predict(MODEL, exits, AROUND)
    assert cost.edge_ms == pytest.approx(edge, rel=0.02)
    assert cost.cloud_ms == pytest.approx(cloud, rel=0.04)
    assert cost.bytes_up == pytest.approx(up, rel=0.02)
    assert cost.network_ms == pytest.approx(network, rel=0.06)  # the mean of a maximum is not the maximum of means


@pytest.mark.parametrize("rates", [(0.0,), (0.0, 1.0), (1.0,)])
def test_an_answer_without_chance_costs_exactly_what_it_costs_step_by_step(rates: tuple[float, ...]) -> None:
    exits = [PlannedExit(2 * number, rate, 1.3 * (rate > 0)) for number, rate in enumerate(rates, 1)]
    edge, network, cloud, up = (each / AROUND.tokens for each in simulated(exits, AROUND, random.Random(0)))
    cost = predict(MODEL, exits, AROUND)
    assert (cost.edge_ms, cost.network_ms, cost.cloud_ms) == pytest.approx((edge, network, cloud))
    assert cost.bytes_up == pytest.approx(up)


def test_the_whole_model_on_one_side_takes_all_its_layers_and_one_round_trip() -> None:
    alike = replace(AROUND, cloud=AROUND.edge)
    assert cloud_alone_ms(MODEL, alike) - edge_alone_ms(MODEL, alike) == pytest.approx(14 / 12)
    steps = 12 * (0.4 + 8 * 0.7 + 1.3 * 0.7) + 19 * 0.3 * 8 * 0.7
    assert edge_alone_ms(MODEL, AROUND) == pytest.approx(steps / 12)


@pytest.mark.parametrize("encoding", StateEncoding)
async def test_without_exits_the_predicted_bytes_are_those_that_the_connection_sends(encoding: StateEncoding) -> None:
    """Whose states are sent when is what the next test holds to a real edge."""
    prompt, tokens = 40, 9
    around = replace(AROUND, encoding=encoding, prompt=prompt, tokens=tokens)
    model = ModelSizes(8, HIDDEN, VOCABULARY, 1.0)
    async with (
        fake_cloud(FakeTail(blocks=40)) as fake,
        HTTPClient(fake.url) as http,
        SplitCloud(http) as cloud,
        cloud.session(MANIFEST.fingerprint, encoding) as session,
    ):
        for end in range(prompt, prompt + tokens):
            session.send(some_states(1, session.positions, end))
            await session.token(GREEDY, 10.0)
        sent = session.bytes_up
    assert predict(model, [PlannedExit(2)], around).bytes_up * tokens == pytest.approx(sent, abs=1e-6)


def test_long_prompts_are_counted_in_the_frames_in_which_they_go() -> None:
    row = traffic.row_bytes(256, StateEncoding.FP16)
    one, three = (traffic.states_bytes(0, rows, 256, StateEncoding.FP16) - rows * row for rows in (256, 600))
    assert 2.5 * one < three < 3.5 * one
    assert traffic.states_bytes(5, 0, 256, StateEncoding.FP16) == 0


async def test_a_real_edge_sends_and_asks_what_the_predicted_bytes_assume(demo_split: Path) -> None:
    cloud = FakeSplitCloud()
    async with engine_of(demo_split, cloud) as engine:
        split, _ = await run(engine, QUESTIONS[0], NEVER)
        prompt, tokens = split._prompt_tokens, len(split.answer.committed) - split._prompt_tokens
        assert [len(piece) for piece in cloud.sessions[-1].pieces] == [prompt, *[1] * (tokens - 1)]
        assert cloud.asked == list(range(prompt, prompt + tokens))


def test_a_slower_network_or_side_never_makes_an_answer_cheaper() -> None:
    base = predict(MODEL, EXITS, AROUND).total_ms
    for slower in (
        replace(AROUND, network=NetworkSpeed(20, 1)),
        replace(AROUND, network=NetworkSpeed(14, 0.5)),
        replace(AROUND, edge=EngineSpeed(0.8, 0.4, 0.3)),
        replace(AROUND, cloud=EngineSpeed(0.2, 3.5, 0.1)),
        replace(AROUND, encoding=StateEncoding.FP32),
    ):
        assert predict(MODEL, EXITS, slower).total_ms > base
