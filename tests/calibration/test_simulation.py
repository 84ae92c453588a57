"""The simulation of a gate: it counts what the pipeline does, round by round."""

import random

import pytest

from calibration.simulation import Trace, answers, replay
from calibration.trace import along
from common.decoding.policy import Gate, Plan
from common.enums import BY_CLOUD
from common.types import Provenance
from tests.support.fakes import FakeDrafter, answer_of, cloud_model
from tests.support.traced import PROMPT, TracedEdge, answered, truth_of


def random_trace(rng: random.Random) -> Trace:
    length = rng.randint(1, 40)
    limit = length if rng.random() < 0.3 else rng.randint(length + 1, length + 20)
    confidences = [rng.random() ** rng.choice((0.05, 0.3, 1)) for _ in range(length)]
    return Trace(confidences, [rng.random() < 0.2 + 0.8 * c for c in confidences], 1.0, limit)


def random_plan(rng: random.Random) -> Plan:
    gate = Gate(rng.choice((0.0, 0.5, 0.8, 0.95, 1.0)), rng.choice((0.0, 0.1, 0.5, 0.9)))
    f2 = rng.random() < 0.8
    length = rng.choice((1, 2, 4, 8))
    return Plan(gate=gate, max_draft_tokens=length, stretch_tokens=3, use_draft_verify=f2, draft_ahead=False)


@pytest.mark.parametrize("seed", range(20))
async def test_a_simulated_answer_has_all_counts_of_the_pipelines(seed: int) -> None:
    rng = random.Random(seed)
    kept = 0
    for _ in range(60):
        trace, plan = random_trace(rng), random_plan(rng)
        outcome = replay(trace, plan)
        pipeline = await answered(trace, plan, rng)
        report, ids = pipeline.answer.report, pipeline.answer.committed[len(PROMPT) :]
        assert outcome.changed == (ids != truth_of(trace)), (trace, plan)
        if not outcome.changed:
            assert outcome.cloud_tokens == len(ids) - report.tokens[Provenance.EDGE]
            assert outcome.computed == report.drafted + sum(report.tokens[p] for p in BY_CLOUD)
            assert outcome.calls == report.rounds
            kept += 1
    assert 0 < kept < 60, "some answers change, and some do not"


def test_the_cloud_sees_everything_under_the_strictest_gate_and_nothing_under_the_most_lenient() -> None:
    trace = Trace([0.9] * 20, [True] * 19 + [False], 1.0, 40)
    everything, nothing = (replay(trace, Plan(gate=gate)) for gate in (Gate(1.0, 0.0), Gate(0.0, 0.0)))
    assert (everything.cloud_tokens, everything.changed) == (20, False)
    assert answers([trace], [everything]).calls_per_token == everything.calls / 20 > 0
    assert (nothing.cloud_tokens, nothing.calls, nothing.changed) == (0, 0, True)


@pytest.mark.parametrize("seed", range(10))
async def test_tracing_the_edge_along_the_clouds_answer_gives_every_position(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        trace = random_trace(rng)
        walked = await along(TracedEdge(trace, rng), PROMPT, truth_of(trace))
        assert walked == (trace.confidences, trace.agrees)


async def test_an_edge_whose_context_is_full_has_confidence_0() -> None:
    confidences, agrees = await along(FakeDrafter(cloud_model, context=5), [1, 2], answer_of(cloud_model, [1, 2], 8))
    assert (confidences[:3], agrees[:3]) == ([1.0] * 3, [True] * 3)
    assert not any(confidences[3:]) and not any(agrees[3:]) and len(agrees) > 3
