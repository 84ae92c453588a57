"""Calibrating a router: its weights, the order of its thresholds, its files, and that the server scores as it does."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from calibration import logistic, route_report
from calibration.calibrate import CalibrationRequest
from calibration.data import CalibrationQuestion
from calibration.report import CalibratedConfig
from calibration.routing import SideAnswers, ask_both, fit_router, routed, scores_of, thresholds_for, train
from calibration.target import CalibrationTarget
from common import config
from common.config_edge import ConfidenceConfig
from common.errors import ConfigError
from common.http_client import EdgeCloudHTTPClient
from common.routing import router as routers
from models import heldout
from tests.conftest import Servers
from tests.support.routing.routers import TRAINING
from tests.support.routing.side_answers import side_answers


def request(target: CalibrationTarget, output: Path = Path("calibrated.yaml")) -> CalibrationRequest:
    return CalibrationRequest(target, Path("data.jsonl"), CalibratedConfig(output, None), max_tokens=64)


def test_a_logistic_regression_finds_the_odds_that_the_labels_were_drawn_by() -> None:
    chance = np.random.default_rng(0)
    features = chance.normal(3.0, [0.5, 2.0], (20_000, 2))
    odds = 1.0 + features @ [2.0, -1.5]
    bias, weights = logistic.fit(features, chance.random(len(odds)) < 1 / (1 + np.exp(-odds)))
    assert weights == pytest.approx([2.0, -1.5], abs=0.1)
    assert bias == pytest.approx(1.0, abs=0.4)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 1), st.sampled_from([7.0, 0.1, 0.7]))
def test_weights_are_finite_whatever_the_labels_and_a_feature_that_never_varies_has_none(
    count: int, label: int, always: float
) -> None:
    features = np.column_stack([np.arange(count), np.full(count, always)])  # the mean of some is not quite `always`
    for labels in (np.full(count, label), np.arange(count) > count / 2):
        bias, weights = logistic.fit(features, labels)
        assert np.isfinite([bias, *weights]).all()
        assert weights[1] == 0


@settings(deadline=None)
@given(st.lists(st.floats(0, 2), min_size=2, max_size=40))
def test_a_higher_threshold_never_sends_more_to_the_cloud_nor_makes_fewer_answers_worse(scores: list[float]) -> None:
    answered = side_answers(len(scores), 0.7)
    thresholds = thresholds_for(np.array(scores))
    found = routed(answered, np.array(scores), thresholds)
    assert (thresholds[0], thresholds[-1]) == (0, 1)
    assert (found.calls[0] == 1).all(), "at 0 the cloud answers everything"
    assert (np.diff(found.calls.sum(-1)) <= 0).all()
    assert (np.diff(found.risk) >= 0).all()
    assert found.cloud_work[0] == 1


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        (CalibrationTarget("--target-quality", 0.95, 0.95), lambda found: found.quality >= 0.95),
        (CalibrationTarget("--target-cloud-rate", 0.4, 0.95), lambda found: abs(found.cloud_rate - 0.4) <= 0.03),
        (CalibrationTarget("--max-risk", 0.1, 0.95), lambda found: found.risk < 0.1),
    ],
    ids=["quality", "cloud rate", "risk"],
)
def test_the_threshold_meets_the_target_on_the_part_that_chose_it(target: CalibrationTarget, kept) -> None:  # type: ignore[no-untyped-def]
    fitted = fit_router(side_answers(800, 0.9), 4, request(target), TRAINING)
    assert kept(fitted.tried[fitted.chosen])
    assert fitted.tried[fitted.chosen].cloud_work < 1
    assert route_report.figures(fitted)[route_report.AREA].low > 0, (
        "better than chance on questions that nothing was fitted to"
    )


def test_a_risk_that_so_few_questions_cannot_show_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max-risk"):
        fit_router(side_answers(60, 0.9), 4, request(CalibrationTarget("--max-risk", 0.01, 0.95)), TRAINING)


def test_what_the_edge_cannot_begin_the_cloud_answers_and_no_weight_rests_on_it() -> None:
    unread = SideAnswers(side_answers(1, 1)[0].prompt, [], False, (0, 9), (0.0, 1.0))
    router = train([*side_answers(40, 0.9), unread], 4, TRAINING)
    assert router.training.questions == 40
    assert scores_of(router, [unread])[0] > 1


def test_the_written_router_and_the_config_that_names_it_can_be_used(tmp_path: Path) -> None:
    output, file = tmp_path / "calibrated.yaml", tmp_path / "router.json"
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        asked = request(CalibrationTarget("--target-quality", 0.95, 0.95), output)
        fitted = fit_router(side_answers(400, 0.9), 4, asked, TRAINING)
        route_report.show(fitted, asked.target, Console(quiet=True))
        route_report.write(fitted, asked, ConfidenceConfig(), file, Console(quiet=True))
        assert (tmp_path / "logs/calibration/router.json").exists()
    assert routers.load(file) == fitted.router
    assert config.load(str(output), environment={}).edge.router.path == str(file)
    with pytest.raises(ConfigError, match="is a folder"):
        route_report.check(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        route_report.check(tmp_path / "nowhere" / "router.json")


async def test_a_running_edge_scores_a_question_as_its_calibration_did(servers: Servers) -> None:
    """And routes it accordingly: what was measured for a threshold is what an edge with it answers."""
    shipped = routers.load(Path("models/demo-router.json"))
    chosen = [CalibrationQuestion(prompt, answer) for _, prompt, answer in heldout.pairs(per_kind=1)][:6]
    async with EdgeCloudHTTPClient(servers.edge_url, servers.cloud_url) as client:
        for question in chosen:
            sides = await ask_both(client, question, max_tokens=64)
            score = float(scores_of(shipped, [sides])[0])
            body = {"messages": [{"role": "user", "content": question.prompt}], "max_tokens": 64, "temperature": 0}
            for threshold, side in ((score - 1e-6, "cloud"), (score + 1e-6, "edge")):
                fields = {"mode": "route", "route_threshold": min(max(threshold, 0.0), 1.0)}
                answer = await client.edge.post("/v1/chat/completions", body | fields, dict)
                report = answer["collaboration"]
                assert report["route_score"] == pytest.approx(score, abs=1e-7)
                assert report["routed_to"] == side
                assert question.worth(answer["choices"][0]["message"]["content"], "") == sides.worth[side == "cloud"]
