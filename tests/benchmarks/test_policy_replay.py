"""Replayed answers: virtual time is exact, texts are the cloud's own, and the policy is near the best in hindsight."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from benchmarks.policy import sampled, sampled_answers, trace
from benchmarks.policy.batched_steps import BatchedSteps
from benchmarks.policy.record import along
from benchmarks.policy.regret import CLOUD_ONLY, LOSSLESS, cells, oracle, settled
from benchmarks.policy.replay import ReplaySetting, replay
from benchmarks.policy.trace import AnswerTrace, PairTimes
from benchmarks.policy.virtual_time import simulate
from common.decoding.policy import Plan
from common.errors import ConfigError
from common.types import NEVER, VerificationMode
from tests.support.fakes import FakeDrafter, answer_of, cloud_model, erring_model

REAL = Path(__file__).parent / "traces" / "qwen2.5-coder.jsonl"
"""The real pair's answers to HumanEval, to prose questions and to requests to edit a file, of up to 64 tokens each."""
SAMPLED = REAL.with_name("sampled-qwen2.5-coder.jsonl")
TIMES = PairTimes("made up", draft=0.01, step=0.1, verified=0.004)
RIGHT = AnswerTrace("", 8, [0.99] * 40, [True] * 40, {})
WRONG = AnswerTrace("", 8, [0.6] * 40, [False] * 40, {n: [0.6] * 4 for n in range(40)})
MODES = [VerificationMode.ROUNDS, VerificationMode.CONTINUOUS]


def test_time_passes_as_it_is_slept_and_no_other() -> None:
    async def program() -> list[float]:
        clock = asyncio.get_running_loop()
        began = clock.time()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
        middle = clock.time()
        await asyncio.sleep(0)
        return [middle - began, clock.time() - middle]

    assert simulate(program()) == [7200, 0]


def test_a_simulation_that_waits_for_nothing_ends_with_an_error() -> None:
    async def program() -> None:
        await asyncio.Event().wait()

    with pytest.raises(ConfigError, match="never happen"):
        simulate(program())


def test_the_cloud_alone_takes_a_round_trip_and_a_step_for_each_token() -> None:
    (alone,) = replay([RIGHT], ReplaySetting(TIMES, 0.05), CLOUD_ONLY)
    assert alone.seconds == pytest.approx(0.05 + 40 * TIMES.step)
    assert (alone.computed, alone.steps) == (40, 40)


def test_rounds_of_a_fixed_length_take_what_their_parts_take() -> None:
    plan = replace(
        LOSSLESS, verification_mode=VerificationMode.ROUNDS, max_draft_tokens=4, draft_stop=NEVER, draft_ahead=False
    )
    (rounds,) = replay([RIGHT], ReplaySetting(TIMES, 0.05), plan)
    assert rounds.seconds == pytest.approx(8 * (4 * TIMES.draft + 0.05 + TIMES.step + 4 * TIMES.verified))
    assert rounds.report.accepted == rounds.report.drafted == 32


def test_a_step_takes_all_that_wait_but_those_who_have_left() -> None:
    async def program() -> list[float]:
        engine, clock = BatchedSteps(first=1.0, more=0.25), asyncio.get_running_loop()

        async def ends(tokens: int, begins: float) -> float:
            await asyncio.sleep(begins)
            await engine.run(tokens)
            return clock.time()

        async with asyncio.timeout(10):
            leaving = asyncio.create_task(ends(8, 0.5))
            running = [asyncio.create_task(ends(*one)) for one in ((1, 0.0), (3, 0.0), (1, 0.1), (2, 0.6))]
            await asyncio.sleep(1.0)
            leaving.cancel()
            return await asyncio.gather(*running)

    assert simulate(program()) == pytest.approx([1.75, 1.75, 3.25, 3.25])


def test_clients_share_the_steps_of_both_engines() -> None:
    setting = ReplaySetting(msgspec.structs.replace(TIMES, drafted=0.005), clients=3)
    alone = replay([RIGHT] * 3, setting, CLOUD_ONLY)
    assert [one.seconds for one in alone] == pytest.approx([40 * (TIMES.step + 2 * TIMES.verified)] * 3)
    plan = replace(
        LOSSLESS, verification_mode=VerificationMode.ROUNDS, max_draft_tokens=4, draft_stop=NEVER, draft_ahead=False
    )
    rounds = replay([RIGHT] * 3, setting, plan)
    each = 4 * (TIMES.draft + 2 * 0.005) + TIMES.step + (3 * 5 - 1) * TIMES.verified
    assert [one.seconds for one in rounds] == pytest.approx([8 * each] * 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("answer", [RIGHT, WRONG])
def test_no_policy_is_faster_than_the_oracle(mode: VerificationMode, answer: AnswerTrace) -> None:
    for round_trip in (0.0, 0.05):
        setting = ReplaySetting(TIMES, round_trip)
        (one,) = replay([answer], setting, replace(LOSSLESS, verification_mode=mode))
        assert one.seconds >= oracle([answer], setting)[0] - 1e-6
        assert sum(one.report.tokens.values()) == 40


async def test_a_trace_has_the_edges_own_token_after_each_prefix_and_how_it_goes_on_astray() -> None:
    model, prompt = erring_model(4), [1, 4, 2]
    answer = answer_of(cloud_model, prompt, 30)
    confidences, agrees, astray = await along(FakeDrafter(model, lambda n: 1 / (n + 1)), prompt, answer)
    assert agrees == [model([*prompt, *answer[:n]]) == token for n, token in enumerate(answer)]
    assert confidences == [round(1 / (len(prompt) + n + 1), 4) for n in range(len(answer))]
    assert set(astray) == {n for n, right in enumerate(agrees) if not right}


def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path: Path) -> None:
    for text in ("", '{"type":"answer"}', "[]"):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.jsonl"):
            trace.read(tmp_path / "bad.jsonl")
    trace.write(tmp_path / "good.jsonl", TIMES, [RIGHT, WRONG])
    assert trace.read(tmp_path / "good.jsonl") == (TIMES, [RIGHT, WRONG])


@pytest.fixture(scope="module")
def recorded() -> tuple[PairTimes, list[AnswerTrace]]:
    times, traces = trace.read(REAL)
    return times, [one for kind in ("code", "prose", "edit") for one in [t for t in traces if t.kind == kind][:5]]


@pytest.mark.parametrize("round_trip", [0.0, 0.05])
def test_the_policy_is_near_the_best_fixed_choice_of_each_kind_of_text(
    recorded: tuple[PairTimes, list[AnswerTrace]], round_trip: float
) -> None:
    """It is not told the kind; the fixed choice is made afterwards, for each kind. Without learning it is far off."""
    times, traces = recorded
    found = cells(traces, ReplaySetting(times, round_trip))
    assert {cell.kind for cell in found} == {"code", "prose", "edit"}
    for cell in found:
        assert cell.regret < 0.1, cell
        assert cell.over_cloud_only > 1.2, cell
        assert cell.policy > cell.oracle
    for name in found[0].fixed:
        assert sum(cell.policy for cell in found) < 1.02 * sum(cell.fixed[name] for cell in found), name


def test_beside_others_the_policy_is_near_the_best_fixed_choice_and_not_slower_than_the_cloud_alone(
    recorded: tuple[PairTimes, list[AnswerTrace]],
) -> None:
    """Eight clients of one edge: without its share of the steps, prose has 0.95 of the cloud's speed alone."""
    times, traces = recorded
    for cell in cells([one for one in traces if one.kind != "edit"], ReplaySetting(times, 0.014, clients=8)):
        assert cell.regret < 0.1, cell
        assert cell.over_cloud_only > 1.0, cell


@pytest.mark.parametrize("clients", [4, 16])
def test_sampled_answers_are_near_the_best_fixed_choice_beside_others(
    recorded: tuple[PairTimes, list[AnswerTrace]], clients: int
) -> None:
    """Were rounds taken not to wait for the step before their own, regrets would be 17 % (4) and 6 % (16)."""
    traces = [one for one in sampled.traces(SAMPLED) if one.kind in ("edit, 0.7", "prose, 1")]
    for cell in cells(traces, ReplaySetting(recorded[0], 0.014, clients)):
        assert cell.regret < 0.05, cell
        assert cell.over_cloud_only > 1.0, cell
        assert cell.gated_over_cloud_only > 0.97, cell


def test_sampled_answers_have_the_greedy_drafts_that_were_drawn() -> None:
    found = sampled.traces(SAMPLED)
    assert {one.temperature for one in found} == {0.7, 0.8, 1.0}
    for one, answer in zip(found, sampled_answers.read(SAMPLED), strict=True):
        assert one.kind.startswith(answer.kind)
        assert one.agrees == [chance == 1.0 for chance in answer.accepted["greedy"]]


def test_where_drafts_are_never_right_the_answer_is_about_as_fast_as_the_cloud_alone() -> None:
    for round_trip in (0.0, 0.05):
        setting, answers = ReplaySetting(TIMES, round_trip), [WRONG] * 6
        alone, policy = (settled(answers, answers, setting, plan) for plan in (CLOUD_ONLY, LOSSLESS))
        assert policy[-1].seconds < 1.15 * alone[-1].seconds


def test_a_gated_answer_takes_less_of_the_cloud_than_one_whose_drafts_go_on(
    recorded: tuple[PairTimes, list[AnswerTrace]],
) -> None:
    times, traces = recorded
    gated = replace(LOSSLESS, use_confidence_check=True)
    ending, whole = (
        settled(traces, traces, ReplaySetting(times), plan) for plan in (gated, replace(gated, draft_stop=NEVER))
    )
    assert sum(one.computed for one in ending) < 0.5 * sum(one.computed for one in whole)
    assert sum(one.seconds for one in ending) < sum(one.seconds for one in whole)


def test_a_gated_answer_is_not_slower_than_the_cloud_alone_where_many_share_the_edge(
    recorded: tuple[PairTimes, list[AnswerTrace]],
) -> None:
    """Sixteen ask for prose, of which the edge is unsure. Those that stay in rounds have 0.85 of the cloud's speed."""
    times, traces = recorded
    prose = [one for one in traces if one.kind == "prose"]
    setting = ReplaySetting(msgspec.structs.replace(times, drafted=0.0226), 0.014, clients=16)
    plans = CLOUD_ONLY, Plan(), Plan(verification_mode=VerificationMode.ROUNDS)
    alone, gated, kept = (settled(prose, prose * 10, setting, plan) for plan in plans)
    assert sum(one.seconds for one in gated) < 1.03 * sum(one.seconds for one in alone)
    assert sum(one.seconds for one in kept) > 1.1 * sum(one.seconds for one in alone)
    assert VerificationMode.CONTINUOUS in {one.report.way for one in gated}
    assert not any(one.report.lossless for one in gated)


def test_a_gate_that_pays_stays_to_the_end_of_the_answer(recorded: tuple[PairTimes, list[AnswerTrace]]) -> None:
    times, traces = recorded
    code = [one for one in traces if one.kind == "code"]
    for clients in (1, 16):
        found = settled(code, code * 4, ReplaySetting(times, 0.014, clients), Plan())
        assert sum(one.report.way is VerificationMode.ROUNDS for one in found) > 0.9 * len(found)
