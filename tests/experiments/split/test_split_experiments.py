"""Experiments with a split model: formulas, measures, times and tables. Without a server."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from common.errors import ConfigError
from common.types import Mode
from experiments import accuracy_eval, communication_overhead, inference_time
from experiments.counters.cloud import CloudCounts
from experiments.counters.edge import EdgeCounts
from experiments.harness import experiment, results
from experiments.harness.experiment import ExperimentKind
from experiments.harness.trials import ExperimentPlan, LoadCondition, Network, Trial, TrialResult, trials
from experiments.report.schema import AnswerRow, Counts, ExperimentReport, NetworkCounts
from experiments.setup.ablations import CLOUD_ONLY, Ablation
from experiments.setup.configurations import configuration
from experiments.split import paper, time_saved, variants
from experiments.split.formulas import (
    READINGS,
    SplitShape,
    contexts,
    every_layer,
    every_token,
    once,
    positions,
    reduction,
)
from experiments.split.measures import measures
from tests.experiments.test_ablation_measures import SOME

SHAPE = SplitShape(hidden=256, layers=8, first=2)
LENGTHS = [(prompt, tokens) for prompt in (1, 7, 30) for tokens in (1, 2, 15, 96)]


@pytest.mark.parametrize(("prompt", "tokens"), LENGTHS)
def test_formulas_equal_plain_sums(prompt: int, tokens: int) -> None:
    before_each = [prompt + token for token in range(tokens)]
    assert contexts(prompt, tokens) == sum(before_each)
    assert positions(prompt, tokens) == before_each[-1], "the last token is never computed with"
    state = 4 * SHAPE.hidden
    assert every_token(SHAPE, prompt, tokens) == state * sum(before_each)
    assert once(SHAPE, prompt, tokens) == state * before_each[-1] <= every_token(SHAPE, prompt, tokens)
    assert every_layer(SHAPE, prompt, tokens) == 7 * once(SHAPE, prompt, tokens)


def test_nothing_is_sent_for_no_token() -> None:
    assert [of(SHAPE, 9, 0) for _, _, of in READINGS.values()] == [0, 0, 0]


def test_the_papers_figures_fit_the_whole_context_for_each_token_and_no_other_reading() -> None:
    """With answers of 100 tokens, and fp16 states sent once in the paper's method."""
    model = SplitShape(paper.HIDDEN, paper.LAYERS, 0)
    ours = once(model, 20, 100) / 2
    assert every_token(model, 20, 100) / 1e6 == pytest.approx(paper.DATA[0].naive, rel=0.05)
    assert ours / 1e6 == pytest.approx(paper.DATA[0].ours, rel=0.05)
    assert reduction(every_token(model, 20, 100), ours) == pytest.approx(paper.DATA[0].reduction, abs=0.001)
    assert reduction(once(model, 20, 100), ours) == 0.5


def base_ablations() -> list[Ablation]:
    return [variants.NAIVE, variants.STANDALONE, variants.split(0.8), variants.split(1.01), CLOUD_ONLY]


def answered(name: str, question: int, repeat: int = 0, cell: int = 0, share: float = 1.0) -> TrialResult:
    """The tail's layers for a `share` of positions in a tenth of the time; cloud only computes all layers."""
    rng = random.Random(question)
    prompt, tokens = rng.randint(5, 40), rng.randint(1, 60)
    whole = name == CLOUD_ONLY.name
    asked = tokens if whole else round(share * tokens)
    took = tokens * rng.uniform(9, 11) * (1.0 if whole else 0.1)
    tail = 0 if whole else round(share * positions(prompt, tokens))
    cloud = CloudCounts(
        drawn=tokens if whole else 0,
        prefix_computed=prompt if whole else 0,
        request_seconds=took / 2000 if whole else 0,
        split_seconds=0 if whole else took / 4000,
        split_tokens=0 if whole else asked,
        split_layer_tokens=6 * tail,
    )
    row = AnswerRow(
        question=question, repeat=repeat, text="", quality=1.0, latency_ms=took, first_token_ms=1.0, tokens=tokens,
        prompt_tokens=prompt, waited_ms=0.75 * took, cloud_calls=asked, bytes_up=512 * tail, bytes_down=100 * asked,
        provenance={"edge": tokens - asked, "cloud": asked},
    )  # fmt: skip
    counts = Counts(edge=EdgeCounts(), cloud=cloud, network=NetworkCounts(bytes_up=600 * tail, bytes_down=150 * asked))
    return TrialResult(what=Trial(name, repeat, (question,), cell), seconds=took / 1000, rows=[row], counts=counts)


def plan_of(ablations: list[Ablation], baseline: Ablation, **fields: object) -> ExperimentPlan:
    base = experiment.base_config(variants.parser("", 9, 1, ".").parse_args([]), variants.SETTINGS)
    fields_of_plan = {
        "data": "some", "prompts_sha256": "", "questions": 30, "repeats": 1, "max_tokens": 9, "temperature": 0.0,
        "seed": 0, "network": Network(14, 20), "config": {}, "baseline": baseline.name,
    }  # fmt: skip
    return ExperimentPlan(configurations=[configuration(one, base) for one in ablations], **fields_of_plan | fields)  # type: ignore[arg-type]


def report_of(
    ways: list[Ablation], baseline: Ablation, share: float = 1.0
) -> tuple[ExperimentReport, ExperimentPlan, list[TrialResult]]:
    plan = plan_of(ways, baseline)
    entries = [answered(way.name, question, share=share) for way in ways for question in range(30)]
    found = results.report(plan, entries, SOME, measures(SHAPE))
    return found, plan, entries


def test_cloud_work_is_the_share_of_all_layers_that_the_cloud_computed() -> None:
    for share in (0.0, 0.5, 1.0):
        found, _, _ = report_of(base_ablations(), CLOUD_ONLY, share)
        by_name = {one.name: one.measures for one in found.configurations}
        assert by_name[CLOUD_ONLY.name]["cloud_layer_share"].value == 1
        assert by_name["split 0.8"]["cloud_layer_share"].value == pytest.approx(6 / 8 * share, abs=0.01)
        assert by_name["split 0.8"]["cloud_rate"].value == pytest.approx(share, abs=0.02)


def test_edge_cloud_and_communication_are_the_total() -> None:
    found, _, _ = report_of(base_ablations(), CLOUD_ONLY)
    for one in found.configurations:
        parts = [one.measures[name].value for name in ("edge_ms", "cloud_ms", "communication_ms")]
        assert sum(parts) == pytest.approx(one.measures["latency_mean_ms"].value)
        assert min(parts) >= 0


def test_reductions_are_by_all_bytes_of_all_answers() -> None:
    found, _, entries = report_of([variants.split(0.8), CLOUD_ONLY], CLOUD_ONLY, 0.5)
    rows = [row for entry in entries if entry.what.configuration == "split 0.8" for row in entry.rows]
    ours = sum(row.bytes_up + row.bytes_down for row in rows)
    for name, (_, _, of) in READINGS.items():
        naive = sum(of(SHAPE, row.prompt_tokens, row.tokens) for row in rows)
        measured = found.configurations[0].measures[f"reduction_{name}"]
        assert measured.value == pytest.approx(reduction(naive, ours))
        assert measured.low <= measured.value <= measured.high


@pytest.mark.parametrize("saved", [-1.0, 0.0, 0.25, 0.9])
def test_time_saved_is_against_cloud_only_in_its_own_cell(saved: float) -> None:
    def entry(name: str, question: int, cell: int, ms: float) -> TrialResult:
        row = AnswerRow(question=question, repeat=0, latency_ms=ms, tokens=1)
        counts = Counts(edge=EdgeCounts(), cloud=CloudCounts(), network=NetworkCounts())
        return TrialResult(what=Trial(name, 0, (question,), cell), seconds=1.0, rows=[row], counts=counts)

    entries = []
    for question in range(20):
        ms = random.Random(question).uniform(50, 500)
        entries += [entry(CLOUD_ONLY.name, question, 0, ms), entry("split", question, 0, ms * (1 - saved))]
        entries += [entry(CLOUD_ONLY.name, question, 1, ms), entry("split", question, 1, 3 * ms)]
    found, other = (time_saved.saved(entries, "split", cell) for cell in (0, 1))
    assert found is not None and other is not None
    assert list(found) == pytest.approx([saved] * 3)
    assert other.value == pytest.approx(-2)
    assert str(other) == "+200.0% [+200.0%, +200.0%]"
    assert time_saved.saved(entries, "naive_split", 0) is None


def test_the_interval_of_time_saved_holds_it() -> None:
    _, _, entries = report_of(base_ablations(), CLOUD_ONLY)
    found = time_saved.saved(entries, "split 0.8", 0)
    assert found is not None and 0 < found.low <= found.value <= found.high < 1
    ratio = found.ratio
    assert ratio.low <= ratio.value <= ratio.high


def test_every_cell_has_every_question_and_the_first_is_in_the_order_of_a_plan_without_cells() -> None:
    cells = [LoadCondition(Network(14, 20)), LoadCondition(Network(0, 20)), LoadCondition(Network(14, 20), clients=16)]
    plain, wanted = (plan_of(base_ablations(), CLOUD_ONLY, repeats=2, cells=each) for each in ([], cells))
    found = list(trials(wanted))
    for number in range(3):
        for way in base_ablations():
            mine = [one for one in found if one.cell == number and one.configuration == way.name]
            asked = [(question, one.repeat) for one in mine for question in one.questions]
            assert sorted(asked) == [(question, repeat) for question in range(30) for repeat in range(2)]
    assert [one for one in found if one.cell == 0] == list(trials(plain))
    assert all(len(one.questions) == 30 for one in found if one.cell == 2), "16 clients have something to ask"


def test_the_first_cell_is_that_of_the_network_and_none_is_there_twice() -> None:
    parser = variants.parser("", 9, 1, ".")
    for name in ("round-trips", "uplinks", "clients"):
        parser.add_argument(f"--{name}", default="")
    args = parser.parse_args(["--round-trips", "0,14,100", "--uplinks", "2,20", "--clients", "1,16"])
    found = inference_time.load_conditions(args)
    assert found[0] == LoadCondition(Network(14, 20))
    assert len(set(found)) == len(found) == 5
    with pytest.raises(ConfigError, match="--round-trips takes numbers"):
        inference_time.load_conditions(parser.parse_args(["--round-trips", "a"]))


def test_the_options_of_the_first_documents_say_what_is_asked() -> None:
    args = accuracy_eval.parser().parse_args(["--task", "boolq:here", "--mode", "collaborative", "--samples", "100"])
    assert (args.data, args.questions, args.mode) == ("boolq:here", 100, "collaborative")
    assert accuracy_eval.parser().parse_args(["--dataset", "alpaca"]).data == "alpaca"
    assert accuracy_eval.parser().parse_args([]).data is None
    names = {mode: {one.name for one in accuracy_eval.ablations(mode, [0.8])} for mode in (None, "collaborative")}
    assert names == {None: {"standalone", "split 0.8", "cloud_only"}, "collaborative": {"split 0.8", "cloud_only"}}
    assert inference_time.ablations(None)[2].fields == {}


def test_each_exits_own_threshold_in_the_config_is_compared_where_there_is_one() -> None:
    own, *_ = [one for one in accuracy_eval.ablations("collaborative", [], own=True) if one.mode is Mode.SPLIT]
    assert own.fields == {}
    made = plan_of([own, variants.split(0.9)], CLOUD_ONLY).configurations
    assert "confidence_threshold" not in made[0].fields
    assert made[0].needs == made[1].needs


def test_without_thresholds_there_is_no_curve_over_them() -> None:
    found, plan, entries = report_of([variants.STANDALONE, CLOUD_ONLY], CLOUD_ONLY, 0.3)
    accuracy_eval.finish([], found, plan, entries)
    assert found.tables and found.charts == []


def added() -> Iterator[tuple[str, ExperimentReport]]:
    """Each experiment's report with its own tables and curves."""
    thresholds = [0.8, 1.01]
    found, plan, entries = report_of(base_ablations(), variants.NAIVE, 0.3)
    communication_overhead.finish(thresholds, SHAPE, found, plan, entries)
    yield "communication", found
    found, plan, entries = report_of(base_ablations(), CLOUD_ONLY, 0.3)
    accuracy_eval.finish(thresholds, found, plan, entries)
    yield "accuracy", found
    found, plan, entries = report_of(inference_time.ablations(0.8), CLOUD_ONLY, 0.3)
    inference_time.finish(found, plan, entries)
    yield "inference_time", found


def test_each_experiment_shows_its_results_beside_the_papers_figures() -> None:
    for name, found in added():
        titles = [table.title for table in found.tables]
        assert any("Beside the paper" in title for title in titles), name
        assert found.findings
        for table in found.tables:
            assert table.rows and all(len(row) == len(table.heads) for row in table.rows), (name, table.title)
        for chart in found.charts:
            for curve in chart.curves:
                assert len(curve.x) == len(curve.y) > 1 and np.all(np.diff(curve.x) > 0)


def test_an_experiment_that_answered_nothing_still_has_a_report() -> None:
    plan = plan_of(base_ablations(), CLOUD_ONLY)
    found = results.report(plan, [], SOME, measures(SHAPE))
    accuracy_eval.finish([0.8, 1.01], found, plan, [])
    communication_overhead.finish([0.8, 1.01], SHAPE, found, plan, [])
    assert all(not one.measures for one in found.configurations)


def test_the_threshold_taken_has_the_least_cloud_work_within_a_point() -> None:
    found, _, _ = report_of([variants.split(t) for t in (0.5, 0.8, 1.0)] + [CLOUD_ONLY], CLOUD_ONLY)
    by_name = {one.name: one for one in found.configurations}

    def set_to(name: str, quality: float, work: float) -> None:
        m = by_name[name].measures
        m["quality"] = type(m["quality"])(quality, quality, quality)
        m["cloud_layer_share"] = type(m["quality"])(work, work, work)

    set_to("cloud_only", 0.92, 1.0)
    set_to("split 0.5", 0.90, 0.01)
    set_to("split 0.8", 0.911, 0.1)
    set_to("split 1", 0.92, 0.4)
    swept = [(t, by_name[f"split {t:g}"]) for t in (0.5, 0.8, 1.0)]
    (sentence,) = accuracy_eval.findings(swept, by_name["cloud_only"])
    assert sentence.startswith("Threshold 0.8: 90.0%")
    set_to("split 0.8", 0.85, 0.1)
    set_to("split 1", 0.85, 0.1)
    (sentence,) = accuracy_eval.findings(swept, by_name["cloud_only"])
    assert sentence.startswith("At no threshold")


def test_what_a_request_can_override_needs_no_server_of_its_own() -> None:
    plan = plan_of([variants.split(t) for t in (0.5, 0.9, 1.01)], CLOUD_ONLY)
    assert len({one.needs for one in plan.configurations}) == 1
    assert [one.fields.get("confidence_threshold") for one in plan.configurations] == [0.5, 0.9, None]
    assert plan.configurations[2].fields["use_confidence_check"] is False
    plan = plan_of(inference_time.ablations(0.8), CLOUD_ONLY)
    needs = {one.name: one.needs for one in plan.configurations}
    assert needs.pop("no_exits") == needs["split"]
    assert len(set(needs.values())) == len(needs)
    assert ExperimentKind(title="", name="", program="").settings == experiment.SETTINGS
