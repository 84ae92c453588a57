"""The online gate keeps its target while traffic drifts, where fixed thresholds miss it."""

import contextlib
import random
from collections.abc import AsyncIterator
from functools import cache

import pytest

from calibration.simulation import Trace
from cli.demo import free_ports
from cli.server_process import ServerProcess
from common import config, config_schema
from common.config_schema import OnlineConfig
from common.decoding.online_gate import FARTHEST, GateRound, OnlineGate, shifted
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Gate, Plan, default_plan
from common.decoding.request import DecodingRequest
from common.errors import ConfigError
from common.files.installation import PROJECT
from common.http.client import HTTPClient
from common.protocol.openai import ChatRequest, Message
from common.types import GREEDY, Provenance
from edge.api.plans import plan_of
from models import heldout
from tests.conftest import Servers
from tests.support.traced import PROMPT, TracedCloud, TracedEdge, answered, truth_of

GATE = Gate(0.7, 0.0)
PHASE = 600
"""Answers before the traffic changes."""


@cache
def stream(ease: float, seed: int) -> list[Trace]:
    """Answers of an edge that is less confident and more often wrong the lower `ease` is."""
    rng = random.Random(seed)
    traces = []
    for _ in range(PHASE):
        confidences = [rng.random() ** (0.08 / ease) for _ in range(rng.randint(8, 30))]
        agrees = [rng.random() < c ** (0.05 / ease) for c in confidences]
        traces.append(Trace(confidences, agrees, 1.0, 64))
    return traces


async def measured(online: OnlineGate | None, traces: list[Trace], gate: Gate = GATE) -> tuple[float, float, int]:
    """Cloud rate and share of changed answers over the second half of `traces`, and the number of explored rounds."""
    rng = random.Random(0)
    tokens = cloud = changed = explored = 0
    for number, trace in enumerate(traces):
        answer = (await answered(trace, Plan(gate=gate, max_draft_tokens=4), rng, online)).answer
        explored += answer.report.explored
        if number >= len(traces) // 2:
            ids = answer.committed[len(PROMPT) :]
            tokens += len(ids)
            cloud += len(ids) - answer.report.tokens[Provenance.EDGE]
            changed += ids != truth_of(trace)
    return cloud / tokens, changed / (len(traces) / 2), explored


async def test_a_target_cloud_rate_holds_under_drift_and_is_missed_without_learning() -> None:
    phases = [stream(1.0, 1), stream(0.4, 2), stream(2.0, 3)]
    online = OnlineGate(OnlineConfig(target_cloud_rate=0.3), GATE)
    learned = [(await measured(online, traces))[0] for traces in phases]
    fixed = [(await measured(None, traces))[0] for traces in phases]
    assert all(abs(rate - 0.3) < 0.02 for rate in learned)
    assert max(abs(rate - 0.3) for rate in fixed) > 0.1


async def test_a_target_quality_holds_under_drift_and_is_missed_without_learning() -> None:
    """The target is the mean over all traffic; a better quality is allowed."""
    phases = [stream(1.0, 4) * 2, stream(0.3, 5) * 4]
    online = OnlineGate(OnlineConfig(target_quality=0.9), GATE, seed=0)
    learned = [(await measured(online, traces))[1] for traces in phases]
    fixed = [(await measured(None, traces))[1] for traces in phases]
    assert all(changed < 0.14 for changed in learned)
    assert fixed[1] > 0.17
    assert 0 < online.rejected < online.labels


async def test_exploring_frees_a_gate_that_has_no_labels() -> None:
    lax, traces = Gate(0.01, 0.0), stream(0.6, 6) * 6
    changed = {}
    for explore in (0.0, 0.1):
        online = OnlineGate(OnlineConfig(target_quality=0.9, rate=0.2, explore=explore), lax, seed=0)
        changed[explore], explored = (await measured(online, traces, lax))[1:]
        assert explored == online.explored
        assert (explored > 0) == (explore > 0)
    assert changed[0.1] < 0.2 < changed[0.0]


async def test_an_explored_draft_is_verified_as_a_whole_and_counted() -> None:
    trace = Trace([0.99] * 12, [True] * 11 + [False], 1.0, 64)
    online = OnlineGate(OnlineConfig(target_quality=0.9, explore=1.0), GATE, seed=0)
    pipeline = await answered(trace, Plan(gate=GATE, max_draft_tokens=4), random.Random(0), online)
    report = pipeline.answer.report
    assert pipeline.answer.committed[len(PROMPT) :] == truth_of(trace)
    assert report.tokens[Provenance.EDGE] == 0
    assert report.explored == report.rounds == online.explored
    assert online.rejected == 1


async def test_a_plan_without_verification_has_nothing_to_explore() -> None:
    online = OnlineGate(OnlineConfig(target_quality=0.9, explore=1.0), GATE)
    assert not online.decide([0.99] * 4, Plan(use_draft_verify=False)).explored
    assert online.explored == 0


def test_thresholds_stay_within_0_and_1_whatever_the_traffic() -> None:
    online = OnlineGate(OnlineConfig(target_cloud_rate=0.5, rate=4.0), Gate(0.7, 0.3))
    for kept in (0, 100):
        for _ in range(1000):
            online.learn([], GateRound(kept, 0, 0, 100 - kept))
            online.end()
        assert abs(online.shift) == FARTHEST
        assert 0 < online.gate.product_threshold < online.gate.threshold < 1


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 1.0])
def test_a_shift_and_its_opposite_cancel(threshold: float) -> None:
    assert shifted(shifted(threshold, 2.5), -2.5) == pytest.approx(threshold)
    assert shifted(threshold, 1.0) >= threshold


def test_two_targets_at_once_are_refused_by_name() -> None:
    flags = ["inference.online.target_quality=0.9", "inference.online.target_cloud_rate=0.3"]
    with pytest.raises(ConfigError, match=r"inference\.online: has two targets"):
        config.load(flags=flags, environment={})
    assert not config.load(environment={}).inference.online.enabled


async def test_an_answer_that_is_closed_early_has_ended_for_the_gate_too() -> None:
    online = OnlineGate(OnlineConfig(target_cloud_rate=0.3), GATE)
    trace = Trace([0.99] * 12, [True] * 12, 1.0, 64)
    pipeline = Pipeline(
        DecodingRequest(PROMPT, 64, GREEDY, Plan(gate=GATE)),
        TracedEdge(trace, random.Random(0)),
        TracedCloud(trace),
        online=online,
    )
    chunks = pipeline.run()
    await anext(chunks)
    await chunks.aclose()
    assert online.answers == 1


def test_a_request_may_set_its_own_thresholds() -> None:
    request = ChatRequest(messages=[Message(role="user", content="x")], confidence_threshold=0.9, product_threshold=0.5)
    assert plan_of(request, Plan()).gate == Gate(0.9, 0.5)
    assert plan_of(ChatRequest(messages=request.messages), Plan(gate=Gate(0.1, 0.2))).gate == Gate(0.1, 0.2)


@contextlib.asynccontextmanager
async def learning_edge(cloud_url: str) -> AsyncIterator[HTTPClient]:
    """A real edge whose gate keeps a cloud rate."""
    (port,) = free_ports(1)
    settings = [f"communication.cloud_endpoint={cloud_url}", "inference.online.target_cloud_rate=0.3"]
    flags = ["--host", "127.0.0.1", "--port", str(port), *[word for setting in settings for word in ("--set", setting)]]
    url = f"http://127.0.0.1:{port}"
    process = ServerProcess("edge", "start_edge.py", url, flags, PROJECT / "logs" / "edge-online.log")
    try:
        await process.start()
        await process.wait_ready()
        async with HTTPClient(url) as client:
            yield client
    finally:
        await process.stop()


async def test_a_real_edge_learns_from_its_own_gated_answers_and_from_no_others(servers: Servers) -> None:
    async with learning_edge(servers.cloud_url) as client:
        for _, prompt, _ in heldout.pairs(per_kind=1):
            for own in ({}, {"product_threshold": 0.5}, {"use_confidence_check": False}, {"mode": "edge_only"}):
                body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 32}
                await client.post("/v1/chat/completions", body | own, dict)
        online = (await client.get("/stats", dict))["online_gate"]
    assert online["answers"] == len(heldout.pairs(per_kind=1))
    assert online["threshold"] != default_plan(config_schema.Config()).gate.threshold
