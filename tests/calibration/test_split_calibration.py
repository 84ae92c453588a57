"""Calibrating a split model's exits: replays are what the segments do, the promised risk is kept, files can be used."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from calibration.calibrate import CalibrationRequest
from calibration.data import CalibrationQuestion
from calibration.report import CalibratedConfig
from calibration.split import calibrate as split_calibration
from calibration.split import levels
from calibration.split.calibrate import calibrate_split, parts_for, walk
from calibration.split.levels import LEVELS, NEVER, TrustedExit
from calibration.split.simulation import ExitTrace, replay, simulate
from calibration.target import CalibrationTarget
from common import config
from common.errors import ConfigError, EndpointError
from common.types import Provenance
from edge.split.engine import EdgeInferenceEngine
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.split_answers import LENGTH, QUESTIONS, engine_of, run, tokens
from tests.support.split.split_parts import WholeModel, served

SAME = [(level, level) for level in LEVELS]
"""One threshold for both exits."""
DRAWS = 100


def traces(count: int, seed: int, first_power: float = 1.0) -> list[ExitTrace]:
    """Two exits: a token with a confidence of c is right in a share c of all cases; c ** `first_power` at the first."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        shape = 2, int(chance.integers(1, 20))
        confidence = 1 - chance.beta(0.3, 6, shape)
        found.append(
            ExitTrace(
                int(chance.integers(5, 30)), 1.0, confidence, chance.random(shape) < confidence ** [[first_power], [1]]
            )
        )
    return found


def slowly(trace: ExitTrace, thresholds: Sequence[float]) -> tuple[list[int], int, int, bool]:
    """As `replay`, token by token."""
    taken, cloud, computed, changed = [0, 0], 0, 0, False
    for at in range(trace.tokens):
        exit = next((e for e in (0, 1) if trace.confidence[e, at] >= thresholds[e]), None)
        if exit is None:
            cloud, computed = cloud + 1, trace.prompt + at
        else:
            taken[exit] += 1
            changed |= not trace.agrees[exit, at]
    return taken, cloud, computed, changed


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.9, 0.5), (0.9, 0.9), (0.8, 0.99), (1.0, 1.0), (NEVER, 0.7)])
def test_a_replay_takes_each_token_from_the_first_confident_exit(thresholds: tuple[float, float]) -> None:
    assert [replay(trace, thresholds) for trace in traces(50, 0)] == [
        slowly(trace, thresholds) for trace in traces(50, 0)
    ]


def test_without_exits_every_answer_is_the_whole_models_and_with_them_work_only_shrinks() -> None:
    found = simulate(traces(60, 1), SAME, tail_share=0.75)
    assert (found.risk[0], found.quality[0], found.cloud_rate[0]) == (0, 1, 1)
    assert found.cloud_work[0] == pytest.approx(0.75), "the edge computes the other layers"
    assert (np.diff(found.cloud_work) <= 0).all() and found.cloud_work[-1] == 0
    assert sorted(LEVELS, reverse=True) == LEVELS


@pytest.mark.parametrize("power", [1.0, 4.0])
@pytest.mark.parametrize("level", [0.7, 0.9, 0.98])
def test_at_its_threshold_each_exit_is_right_with_the_probability_of_the_level(power: float, level: float) -> None:
    """An exit that is too sure of itself gets a higher threshold."""
    first, second = levels.thresholds(levels.fit(traces(2000, 4, power)), level)
    assert first**power == pytest.approx(level, abs=0.04)
    assert second == pytest.approx(level, abs=0.04)


def test_a_level_for_each_exit_asks_the_cloud_less_at_equal_risk_where_exits_deserve_unequal_trust() -> None:
    fitting, judged = traces(300, 5, 6.0), traces(300, 6, 6.0)
    exits = levels.fit(fitting)
    own, one = (simulate(judged, each, 0.75) for each in ([levels.thresholds(exits, level) for level in LEVELS], SAME))
    for risk in (0.05, 0.1, 0.2):
        rates = [found.cloud_rate[found.risk <= risk].min() for found in (own, one)]
        assert rates[0] < rates[1] - 0.02


def test_an_exit_is_not_even_taken_at_a_confidence_of_1_where_that_is_not_worth_the_level() -> None:
    assert TrustedExit(-3.0, 0.5).threshold(0.9999) == NEVER
    assert TrustedExit(-3.0, 0.5).threshold(0.99) <= 1


def test_exits_that_confidence_says_nothing_about_are_always_taken_or_never() -> None:
    chance = np.random.default_rng(7)
    for share, taken in ((0.19, [0.0]), (0.85, [0.8, 0.0])):
        confidence, agrees = chance.random((1, 3000)), chance.random((1, 3000)) < share
        backwards = np.sort(confidence)[:, ::-1], np.sort(agrees)
        for each in ((confidence, agrees), backwards):
            exits = levels.fit([ExitTrace(3, 1.0, *each)])
            reached = [level for level in (NEVER, 0.99, 0.8, 0.0) if levels.thresholds(exits, level) != (NEVER,)]
            assert reached == taken
    sure = levels.fit([ExitTrace(3, 1.0, np.full((1, 40), 0.7), np.ones((1, 40), bool))])
    assert levels.thresholds(sure, NEVER) == (NEVER,)


def test_a_few_answers_without_a_mistake_do_not_show_that_an_exit_makes_none() -> None:
    confident = ExitTrace(9, 1.0, np.full((1, 60), 0.999), np.ones((1, 60), bool))
    (threshold,) = levels.thresholds(levels.fit([confident]), 0.99)
    assert 0.9 < threshold < 0.999


@pytest.fixture(scope="module")
def everyone() -> list[ExitTrace]:
    """A population of questions, from which others are drawn."""
    return traces(1000, 2, 2.0)


@pytest.mark.parametrize("bound", [0.05, 0.15])
def test_the_promised_risk_is_broken_no_more_often_than_promised(everyone: list[ExitTrace], bound: float) -> None:
    """Learn then Test: over the draw of the questions, with thresholds fitted to half of them."""
    target, chance, broken, rates = CalibrationTarget("--max-risk", bound, 0.9), np.random.default_rng(3), 0, []
    for _ in range(DRAWS):
        drawn = [everyone[at] for at in chance.integers(0, 1000, 150)]
        learning, choosing = parts_for(drawn, target)
        exits = levels.fit(learning)
        candidates = [levels.thresholds(exits, level) for level in LEVELS]
        chosen = candidates[target.choose(simulate(choosing, candidates, 0.75), order=range(len(LEVELS)))]
        found = simulate(everyone, [chosen], 0.75)
        broken += found.risk[0] > bound
        rates.append(float(found.cloud_rate[0]))
    assert broken / DRAWS < 0.1 + 2 * (0.1 * 0.9 / DRAWS) ** 0.5, "two standard deviations"
    assert np.mean(rates) < 0.9, "it does not keep the bound by asking always"


async def whole(folder: Path, questions: Sequence[str]) -> FakeSplitCloud:
    """A cloud whose model gives what the last exit gives alone to the one question, in place of the tail."""
    cloud = FakeSplitCloud()
    (question,) = questions
    async with engine_of(folder, cloud) as engine:
        alone, _ = await run(engine, question, (2.0, 0.0), standalone=True)
    answer, prompt = tokens(alone), alone._prompt_tokens
    cloud.model = lambda position: answer[position - prompt]
    return cloud


@pytest.mark.parametrize("question", QUESTIONS[:3])
async def test_a_replay_of_a_walk_is_what_the_segments_do(demo_split: Path, question: str) -> None:
    cloud = await whole(demo_split, [question])
    async with engine_of(demo_split, cloud) as engine:
        walked = await walk(engine, CalibrationQuestion(question), LENGTH)
        assert walked.trace.agrees[1].all(), "the last exit is its model here"
        assert walked.trace.worth == 1
        confidences = walked.trace.confidence.flatten().tolist()
        for threshold in [0.0, *sorted(confidences)[:: max(1, len(confidences) // 4)], NEVER]:
            found, real = replay(walked.trace, [threshold] * 2), (await run(engine, question, threshold))[0]
            if not found.changed:
                assert tokens(real) == cloud_answer(cloud, real._prompt_tokens, walked.trace.tokens)
                assert list(real.answer.report.exits.values()) == found.taken
                assert real.answer.report.tokens[Provenance.CLOUD] == found.cloud_tokens


def cloud_answer(cloud: FakeSplitCloud, prompt: int, count: int) -> list[int]:
    return [cloud.model(prompt + at) for at in range(count)]


async def test_a_lost_cloud_ends_a_walk_with_an_error(demo_split: Path) -> None:
    cloud = FakeSplitCloud()
    cloud.fault = lambda number: EndpointError("gone") if number > 2 else None
    async with engine_of(demo_split, cloud) as engine:
        with pytest.raises(EndpointError, match="gone"):
            await walk(engine, CalibrationQuestion("What is AI?"), LENGTH)
        assert engine.segments.stats()["sequences_lent"] == 0


async def test_the_written_config_has_the_thresholds_that_keep_the_target(
    demo_split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    question = "What is the capital of France?"
    cloud = await whole(demo_split, [question])
    monkeypatch.setattr(split_calibration, "EdgeInferenceEngine", lambda _: engine_of(demo_split, cloud))
    rows = tmp_path / "data.jsonl"
    rows.write_text(f'{{"prompt": "{question}"}}\n' * 60)
    output = CalibratedConfig(tmp_path / "calibrated.yaml", None)
    asked = CalibrationRequest(CalibrationTarget("--target-quality", 0.9, 0.95), rows, output, LENGTH)
    await calibrate_split(config.load(environment={}), asked, Console(quiet=True))
    first, second = config.load(str(output.path), environment={}).edge.split.thresholds
    assert first <= NEVER and second <= 1
    found = msgspec.json.decode((tmp_path / "logs/calibration/calibrated.json").read_bytes())
    assert found["config"] == {"edge.split.thresholds": [first, second]}
    assert found["figures"]["cloud_rate"]["measured"] == 0, "the second exit is the model here"
    never = CalibrationRequest(CalibrationTarget("--max-risk", 0.01, 0.95), rows, output, LENGTH)
    with pytest.raises(ConfigError, match="too few"):
        await calibrate_split(config.load(environment={}), never, Console(quiet=True))


async def test_a_walk_follows_the_whole_model_and_measures_every_exit(demo_split: Path) -> None:
    """With the model's last layers behind a real connection."""
    question = "Sort 31, 7, 64."
    async with served(demo_split) as (server, _):
        flags = f"edge.split.manifest={demo_split}", f"communication.cloud_endpoint=http://127.0.0.1:{server.port}"
        settings = config.load(flags=[*flags, "edge.split.deadline_ms=60000"], environment={})
        async with EdgeInferenceEngine(settings) as engine:
            walked = await walk(engine, CalibrationQuestion(question), 8)
    model = WholeModel()
    ids = model.tokens(f"<|user|>{question}<|assistant|>")
    begin = len(ids)
    for _ in range(walked.trace.tokens):
        ids.append(model.likeliest(ids)[0])
    assert walked.trace.tokens > 3 and walked.text == model.text(ids[begin:])
    assert walked.trace.confidence.shape == walked.trace.agrees.shape == (2, walked.trace.tokens)
    assert walked.trace.agrees.mean() > 0.8, "trained exits know the demo's questions"
