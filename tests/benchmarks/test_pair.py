"""Benchmarks measure the pair of their config, and models of their own in place of the demo's."""

import argparse
from pathlib import Path

import pytest

from benchmarks import edge_speed, lossless_speed
from benchmarks.setup import pair
from benchmarks.setup.contenders import ContenderTime
from common.errors import StartError
from experiments import network_sweep
from experiments.questions.general import CODE, PROSE

PRESET = Path("config/presets/qwen2.5-coder.yaml")


def arguments(*settings: str, config: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(config=config and str(config), set=[*settings], data=None, prompts=8)


def test_in_place_of_the_demo_pair_there_is_none() -> None:
    assert pair.edge_file(arguments()) is None
    assert pair.cloud_model(arguments()) is None


def test_the_models_of_a_preset_are_found_under_the_root_and_measured_in_float32(tmp_path: Path) -> None:
    (tmp_path / "qwen2.5-coder-0.5b.gguf").touch()
    (tmp_path / "qwen2.5-coder-1.5b").mkdir()
    args = arguments(f"models.root={tmp_path}", config=PRESET)
    assert pair.edge_file(args) == tmp_path / "qwen2.5-coder-0.5b.gguf"
    model = pair.cloud_model(args)
    assert model and (model.path, model.dtype) == (str(tmp_path / "qwen2.5-coder-1.5b"), "float32")
    args.set.append("cloud.model.dtype=bfloat16")
    model = pair.cloud_model(args)
    assert model and model.dtype == "bfloat16" and model.context_length == 4096
    with pair.model_flags(args) as flags:
        assert flags.index(pair.FLOAT32) < flags.index("cloud.model.dtype=bfloat16"), "the last flag counts"
        assert "--model" not in flags


def test_models_that_are_missing_under_the_root_are_named(tmp_path: Path) -> None:
    args = arguments(f"models.root={tmp_path}", config=PRESET)
    for model in (pair.edge_file, pair.cloud_model):
        with pytest.raises(StartError, match="tried"):
            model(args)


def test_the_demo_pair_is_asked_its_corpus_and_another_pair_general_prompts() -> None:
    assert all(prompt.startswith("Explain ") for prompt in lossless_speed.prompts_of(arguments()))
    general = lossless_speed.prompts_of(arguments(config=PRESET))
    assert len(general) == 8
    assert set(general) <= {*CODE, *PROSE}


def test_a_network_sweep_plans_as_many_prompts_as_there_are() -> None:
    parse = network_sweep.parser().parse_args
    assert network_sweep.plan_of(parse([])).prompts == 200
    plan = network_sweep.plan_of(parse(["--config", str(PRESET)]))
    assert (plan.data, plan.prompts, len(network_sweep.questions_of(plan))) == ("general", 40, 40)


def test_reading_counts_the_prompts_tokens_and_writing_those_of_the_answers() -> None:
    reading, longer, behind, one, many = edge_speed.speed_tasks(64)
    assert reading.speed(ContenderTime(2.0, 1)) == 256
    assert one.speed(ContenderTime(2.0, 64)) == 32
    assert many.speed(ContenderTime(2.0, 500)) == 250
    assert behind.reading == longer.name
    assert behind.speed(ContenderTime(12.0, 64), read_seconds=5.0) == 9


def test_a_ratio_is_the_edges_speed_over_the_others_in_the_same_repeat() -> None:
    speeds = {("1 stream", "edge"): [10.0, 12.0], ("1 stream", "bare"): [20.0, 12.0]}
    (row,) = edge_speed.ratios(speeds)
    assert (row.name, row.ratios) == ("bare, 1 stream", [0.5, 1.0])
