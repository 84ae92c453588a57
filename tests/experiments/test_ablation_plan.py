"""The plan of an ablation experiment: requests, servers, order and options. Without a server."""

import msgspec
import pytest

from common import config as configs
from common.config_schema import AblationConfig, Config
from common.errors import ConfigError
from edgecloud import ablate
from experiments.harness import experiment
from experiments.harness.experiment import ExperimentKind
from experiments.harness.trials import ExperimentPlan, Network, trials
from experiments.questions.datasets import Dataset
from experiments.questions.workload import Question
from experiments.setup import ablations
from experiments.setup.ablations import Ablation
from experiments.setup.configurations import Configuration, Needs, configuration

A_RUN = ExperimentKind(title="A run", name="ablation_report", program="ablation_experiments.py")
NAMES = ["baseline", "no_confidence", "no_draft_verify", "no_kv_cache", "no_http_optimizations", "edge_only",
         "cloud_only"]  # fmt: skip


def base(*settings: str) -> Config:
    return configs.load(None, [*experiment.SETTINGS, *settings], {})


def made(overrides: dict[str, object], *settings: str) -> Configuration:
    return configuration(Ablation(name="mine", description="", config_overrides=overrides), base(*settings))


def plan(*flags: str, questions: int = 6, chosen: str | None = None) -> ExperimentPlan:
    args = experiment.parser("", questions, 2).parse_args(list(flags))
    asked = Dataset("some", "exact_match", [Question(f"q{n}", str(n)) for n in range(questions)])
    config = experiment.base_config(args)
    return experiment.plan_of(args, config, ablations.chosen(chosen, config.experiments.ablations), asked, A_RUN)


# -- presets and the config's own


def test_the_presets_of_the_documents_are_there_and_the_baseline_is_always_among_the_chosen() -> None:
    assert [one.name for one in ablations.chosen(None, [])] == NAMES
    assert [one.name for one in ablations.chosen("edge_only, no_kv_cache,edge_only", [])] == [
        "baseline", "edge_only", "no_kv_cache",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"no ablation 'nothing'; there are baseline, .*cloud_only"):
        ablations.chosen("edge_only,nothing", [])


def test_an_ablation_of_the_config_is_beside_the_presets_or_in_place_of_one() -> None:
    mine = AblationConfig(name="mine", config_overrides={"edge": {"confidence": {"threshold": 0.9}}})
    instead = AblationConfig(name="no_kv_cache", description="only the edge's", config_overrides={})
    found = {one.name: one for one in ablations.chosen(None, [mine, instead])}
    assert list(found) == [*NAMES, "mine"]
    assert found["no_kv_cache"].description == "only the edge's"
    with pytest.raises(ConfigError, match=r"experiments\.ablations\[1\]\.name: 'mine' is there twice"):
        ablations.chosen(None, [mine, mine])
    with pytest.raises(ConfigError, match=r"experiments\.ablations\[0\]\.name"):
        ablations.chosen(None, [AblationConfig(name="a,b")])


def test_the_presets_switch_one_feature_off_each() -> None:
    found = {one.name: configuration(one, base()) for one in ablations.chosen(None, [])}
    assert {name: one.fields for name, one in found.items()} == {
        "baseline": {},
        "no_confidence": {"use_confidence_check": False},
        "no_draft_verify": {"use_draft_verify": False},
        "no_kv_cache": {"use_kv_cache": False},
        "no_http_optimizations": {},
        "edge_only": {"mode": "edge_only"},
        "cloud_only": {"mode": "cloud_only"},
    }
    plain = Needs(edge=("communication.http_client.optimized=false",))
    assert {one.needs for one in found.values()} == {Needs(), plain, Needs(streams=True)}
    assert found["no_http_optimizations"].needs == plain


# -- overrides


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"edge": {"confidense": {}}}, r"\.edge\.confidense: unknown key; did you mean 'confidence'\?"),
        ({"edge": {"confidence": {"threshold": 2}}}, r"\.edge\.confidence\.threshold: expected `float` <= 1"),
        ({"edge": 5}, r"\.edge: expected `object`, got `int`"),
        ({"nothing": {}}, r"\.nothing: unknown key"),
        ({"inference": {"online": {"target_quality": 0.9, "target_cloud_rate": 0.3}}}, r"\.inference\.online: has two"),
    ],
)  # fmt: skip
def test_an_override_is_checked_like_the_config_with_its_whole_path(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"mine: config_overrides{message}"):
        made(overrides)
    wrong = {"experiments": {"ablations": [{"name": "a"}, {"name": "b", "config_overrides": overrides}]}}
    with pytest.raises(ConfigError, match=rf"^experiments\.ablations\[1\]\.config_overrides{message}"):
        configs.check(wrong)


def test_an_override_of_a_key_that_the_experiment_sets_is_refused() -> None:
    for key, value in (("host", "example.org"), ("port", 9000)):
        with pytest.raises(ConfigError, match=rf"edge\.server\.{key}: the experiment sets this one itself"):
            made({"edge": {"server": {key: value}}})


def test_an_override_becomes_a_request_field_or_a_setting_of_the_side_that_it_is_for() -> None:
    gate = made({"edge": {"confidence": {"threshold": 0.9}}, "inference": {"max_draft_tokens": 4}})
    assert (gate.fields, gate.needs) == ({"confidence_threshold": 0.9, "max_draft_tokens": 4}, Needs())
    edge = made({"edge": {"confidence": {"strategy": "entropy", "threshold": 0.9}}})
    assert edge.fields == {"confidence_threshold": 0.9}
    assert edge.needs == Needs(edge=('edge.confidence.strategy="entropy"',))
    cloud = made({"cloud": {"kv_cache": {"enabled": False}, "engine_args": {"seed": 1}}})
    assert cloud.needs == Needs(cloud=("cloud.engine_args.seed=1", "cloud.kv_cache.enabled=false"))
    assert made({"edge": {"confidence": {"threshold": 0.8}}}).needs == Needs(), "it was 0.8 before"
    assert made({"cloud": {"kv_cache": {"enabled": False}}}) == made({"cloud": {"kv_cache": {"enabled": False}}})


def test_server_settings_are_parsed_back_to_the_same_config() -> None:
    overrides = {
        "cloud": {"engine_args": {"max_num_seqs": 7, "note": 'a "b": c'}},
        "edge": {"server": {"cors_origins": ["*"]}, "kv_cache": {"directory": "no"}},
        "inference": {"online": {"target_quality": 0.9}},
    }
    needs = made(overrides).needs
    read = configs.load(None, [*experiment.SETTINGS, *needs.cloud, *needs.edge], {})
    assert read == configs.with_overrides(base(), overrides, "")


def test_thresholds_are_server_settings_for_the_online_gate() -> None:
    online = "inference.online.target_cloud_rate=0.3"
    found = made({"edge": {"confidence": {"threshold": 0.9}}}, online)
    assert (found.fields, found.needs) == ({}, Needs(edge=("edge.confidence.threshold=0.9",)))


def test_keys_that_make_counts_depend_on_timing_are_named() -> None:
    assert made({}).timed == []
    assert made({"inference": {"draft_ahead": True}}).timed == ["inference.draft_ahead"]
    lossless = {"features": {"use_confidence_check": False}}
    assert made({"inference": {**lossless}}).timed == []
    assert made({"inference": {**lossless, "way": "auto", "objective": "latency"}}).timed == [
        "inference.way", "inference.objective",
    ]  # fmt: skip


# -- order


def test_every_configuration_answers_every_question_in_every_repeat_and_takes_turns() -> None:
    wanted = plan(questions=30)
    order = list(trials(wanted))
    assert len(order) == len(set(order)) == 7 * 30 * 2
    for begin in range(0, len(order), 7):
        turns = order[begin : begin + 7]
        assert {one.configuration for one in turns} == set(NAMES)
        assert len({(one.repeat, one.questions) for one in turns}) == 1
    firsts = [one.configuration for one in order[::7]]
    assert all(2 <= firsts.count(name) <= 18 for name in NAMES), "each is first now and then"
    repeats = [[one.questions for one in order if one.repeat == n] for n in (0, 1)]
    assert sorted(repeats[0]) == sorted(repeats[1]) and repeats[0] != repeats[1]


def test_the_seed_decides_the_order() -> None:
    assert list(trials(plan("--seed", "3"))) == list(trials(plan("--seed", "3")))
    assert list(trials(plan("--seed", "3"))) != list(trials(plan("--seed", "4")))


def test_blocks_hold_every_question_once() -> None:
    wanted = msgspec.structs.replace(plan(questions=7, chosen="baseline"), block=3)
    found = [one.questions for one in trials(wanted) if one.repeat == 0]
    assert [len(block) for block in found] == [3, 3, 1]
    assert sorted(n for block in found for n in block) == list(range(7))


# -- command line


def test_the_command_line_becomes_the_plan() -> None:
    found = plan("--network", "20,50", "--repeats", "5", "--seed", "9", "--max-tokens", "7", chosen="edge_only")
    assert (found.network, found.repeats, found.seed, found.max_tokens) == (Network(20, 50), 5, 9, 7)
    assert [one.name for one in found.configurations] == ["baseline", "edge_only"]
    assert found.turns == experiment.DEMO_TURNS
    assert plan("--data", "x.jsonl").turns == 0
    assert plan("--data", "x.jsonl", "--turns", "1").turns == 1


@pytest.mark.parametrize(
    "flags",
    [["--network", "20"], ["--network", "a,b"], ["--network", "5,0"], ["--repeats", "0"], ["--max-tokens", "0"],
     ["--temperature", "3"], ["--turns", "-1"]],
)  # fmt: skip
def test_invalid_options_are_refused_before_anything_starts(flags: list[str]) -> None:
    with pytest.raises(ConfigError, match=flags[0]):
        plan(*flags)


def test_secrets_stay_out_of_the_plan() -> None:
    found = plan("--set", "communication.cloud_api_key=hidden", "--set", "edge.server.api_keys=[hidden]")
    assert "hidden" not in str(found.config)


def test_secrets_stay_out_of_the_options_too() -> None:
    flags = ["--set", "communication.cloud_api_key=abc", "--set", "cloud.server.api_keys=[abc]", "--set", "a.b=1"]
    options = experiment.options_of(experiment.parser("", 1, 1).parse_args(flags))
    assert options["set"] == ["communication.cloud_api_key=***", "cloud.server.api_keys=***", "a.b=1"]


def test_the_default_output_is_what_the_documents_say() -> None:
    assert experiment.parser("", 1, 1).parse_args([]).output == "."
    assert ablate.NAME == "ablation_report"
