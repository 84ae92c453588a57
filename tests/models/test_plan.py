"""The plan of a cut: the fastest that fits, a command that can be run, and one line for wrong numbers."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import msgspec
import pytest
import torch
from safetensors.torch import save_file

from common import config as configs
from common.cloud_client import split_traffic as traffic
from common.config_edge import EdgeModelConfig
from common.errors import ConfigError
from common.protocol.split_manifest import exits_fault
from common.types import StateEncoding
from edge.split.early_exit import thresholds_of
from models.exits.heads import write_exits
from models.exits.temperatures import Fit
from models.exits.translators import TranslatedExits
from models.partition import exit_tensors as names
from models.partition.checkpoint import Checkpoint
from models.partition.edge_memory import MIXTURES, ExitForm, edge_bytes, files_bytes, weight_bytes
from models.partition.exit_tensors import Exits, confident_shares
from models.partition.gguf_export import QUANTIZATIONS
from models.partition.model_config import read_config
from models.partition.partition import parser, run
from models.partition.plan import CutPlan, PlanRequest, plan
from models.partition.segment_files import SegmentWriter, plan_segment
from models.partition.split_cost import EngineSpeed, NetworkSpeed, Surroundings
from tests.support import tiny_checkpoints as tiny

DEMO = Path(__file__).parents[2] / "models" / "demo-cloud"
SLOW, FAST = EngineSpeed(5.0, 0.5), EngineSpeed(0.5, 0.5)
AROUND = Surroundings(SLOW, FAST, NetworkSpeed(14, 20), StateEncoding.FP16, 20, 20)
NUMBERS = {"edge-speed": "5ms+0.5ms", "cloud-speed": "0.5ms+0.5ms", "rtt": "14", "uplink": "20", "tokens": "20,20"}


def request(**changes: Any) -> PlanRequest:
    config = read_config(DEMO / "config.json")
    return replace(PlanRequest(str(DEMO), config, None, {}, "q8_0", EdgeModelConfig(), math.inf, AROUND), **changes)


def command(*more: str, **numbers: str) -> list[str]:
    flags = NUMBERS | {name.replace("_", "-"): number for name, number in numbers.items()}
    given = [f"--{name}={number}" for name, number in flags.items() if number]
    return ["--model", str(DEMO), "--plan", *given, *more]


def test_without_exits_the_faster_side_has_as_many_layers_as_possible() -> None:
    assert plan(request()).best == 1
    assert plan(request(around=replace(AROUND, edge=FAST, cloud=SLOW))).best == 7


def test_an_exit_that_takes_most_tokens_is_worth_the_layers_before_it() -> None:
    found = plan(request(rates={3: 0.9}, around=replace(AROUND, network=NetworkSpeed(100, 20))))
    assert found.best == 3 and found.chosen.exits == [3]
    assert found.chosen.asks == pytest.approx(0.1)
    assert [cut.exits for cut in found.cuts] == [[1, 3], [2, 3], [3], [4], [5], [6], [7]]


def test_an_exit_that_adds_nothing_is_left_out() -> None:
    found = plan(request(rates={2: 0.8, 5: 0.8}, around=replace(AROUND, network=NetworkSpeed(100, 20))))
    assert found.chosen.exits == [2]


def test_a_comparison_that_would_take_days_is_refused_and_bytes_are_counted_once_for_equal_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates, counted, count = {6: 0.5, 7: 0.6}, list[int](), traffic.token_bytes
    with pytest.raises(ConfigError, match=r"--exit-rates: .* 2 exits takes too long for answers of 1000000 tokens"):
        plan(request(rates=rates, around=replace(AROUND, tokens=1_000_000)))

    def noted(*given: int) -> int:
        counted.append(1)
        return count(*given)

    monkeypatch.setattr(traffic, "token_bytes", noted)
    plan(request(rates=rates, around=replace(AROUND, prompt=21)))
    assert len(counted) <= 6 * AROUND.tokens  # of 23 sets


def test_only_what_fits_is_chosen_and_the_smallest_is_named_where_nothing_does() -> None:
    faster_edge = request(around=replace(AROUND, edge=FAST, cloud=SLOW))
    sizes = [cut.memory for cut in plan(faster_edge).cuts]
    assert sizes == sorted(sizes)
    found = plan(replace(faster_edge, memory=sizes[3]))
    assert found.best == 4 and [cut.fits for cut in found.cuts] == [True] * 4 + [False] * 3
    assert found.edge_alone_ms is None and plan(faster_edge).edge_alone_ms
    with pytest.raises(ConfigError, match=r"no cut fits into 1 MiB; the smallest, after 1 of 8 layers, needs \d+ MiB"):
        plan(replace(faster_edge, memory=2.0**20))


def test_the_command_cuts_the_model_as_planned_and_its_settings_switch_off_exits_without_a_rate() -> None:
    found = plan(request(rates={6: 0.9}, around=replace(AROUND, network=NetworkSpeed(500, 20))))
    words = found.command.split()
    args = parser().parse_args(words[words.index("models.partition") + 1 :])
    assert args.exits == found.chosen.exits and exits_fault(args.exits, 8) is None and args.output
    split = configs.load(flags=found.settings, environment={}).edge.split
    limits = thresholds_of(split.thresholds, found.chosen.exits, "key")
    assert [limit <= 1 for limit in limits] == [exit == 6 for exit in found.chosen.exits]


@pytest.mark.parametrize("quantization", [*QUANTIZATIONS, *MIXTURES])
def test_fewer_bits_need_less_memory(quantization: str) -> None:
    config = read_config(DEMO / "config.json")
    sizes = [edge_bytes(config, [2, 4], [ExitForm()] * 2, kind, EdgeModelConfig()) for kind in ("f32", quantization)]
    assert sizes[1] <= sizes[0]
    assert weight_bytes(quantization) <= 4


@pytest.mark.parametrize(("tied", "heads"), [(True, []), (False, [1]), (False, [3]), (True, [1, 3])])
def test_the_predicted_size_of_files_is_that_of_their_tensors(tied: bool, heads: list[int], tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny.qwen3(tmp_path / "model", tie_word_embeddings=tied))
    tensors = {names.norm_name(exit): torch.ones(64) for exit in (1, 3)}
    tensors |= {names.head_name(exit): torch.ones(4096, 64) for exit in heads}
    save_file(tensors, tmp_path / "exits.safetensors")
    exits = Exits(checkpoint, [1, 3], tmp_path / "exits.safetensors")
    writer = SegmentWriter(checkpoint, "f16", tmp_path / "vocabulary.gguf", lambda: None)
    for number in range(2):
        writer.write(plan_segment(checkpoint, exits, number, "tiny"), tmp_path / f"{number}.gguf")
    found = sum(int(tensor.n_bytes) for path in tmp_path.glob("*.gguf") for tensor in gguf.GGUFReader(path).tensors)
    forms = [ExitForm(head=exit in heads) for exit in (1, 3)]
    assert files_bytes(checkpoint.config, [1, 3], forms, "f16") == found


def translated(model: Path, path: Path, confident: list[float]) -> Path:
    fits = [Fit(1.0, 0.0, 0.0, 1.0, share) for share in confident]
    write_exits(TranslatedExits(Checkpoint(model), [1, 3]), fits, path, Checkpoint(model).weights_hash)
    return path


def test_rates_come_from_the_exits_file_and_cuts_are_at_its_exits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.qwen3(tmp_path / "model", num_hidden_layers=4)
    path = translated(model, tmp_path / "exits.safetensors", [0.25, 0.75])
    assert confident_shares(path) == {1: 0.25, 3: 0.75}
    numbers = [f"--{name}={number}" for name, number in NUMBERS.items()]
    assert (
        run(parser().parse_args(["--model", str(model), "--plan", "--json", "--exits-file", str(path), *numbers])) == 0
    )
    found = msgspec.json.decode(capsys.readouterr().out, type=CutPlan)
    assert [cut.cut for cut in found.cuts] == [1, 3]
    assert found.cuts[1].asks == pytest.approx(0.25)
    assert f"--exits-file {path}" in found.command
    wrong = translated(model, tmp_path / "wrong.safetensors", [0.25, math.nan])
    with pytest.raises(ConfigError, match="not all within 0 to 1"):
        confident_shares(wrong)


def test_some_of_the_exits_of_a_file_can_be_used(tmp_path: Path) -> None:
    model = tiny.qwen3(tmp_path / "model", num_hidden_layers=4)
    path = translated(model, tmp_path / "exits.safetensors", [0.25, 0.75])
    assert Exits(Checkpoint(model), [3], path).translator(3) is not None
    with pytest.raises(ConfigError, match="has exits after 1,3 layers, not 2,3"):
        Exits(Checkpoint(model), [2, 3], path)


def test_the_table_names_the_best_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parser().parse_args(command("--exit-rates", "3:0.9", rtt="100", memory="1GiB", states="int8"))) == 0
    shown = capsys.readouterr().out
    best = next(line for line in shown.splitlines() if "best " in line)
    assert "│ 3 " in best
    assert "--exits 3 --quantize q8_0" in shown and "edge.split.transfer=int8" in shown


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"edge_speed": ""}, "--plan needs --edge-speed"),
        ({"edge_speed": "fast"}, "--edge-speed fast: give ms a layer"),
        ({"edge_speed": "0ms"}, "--edge-speed 0: must be a number above 0"),
        ({"edge_speed": "nanms"}, "--edge-speed nan: must be"),
        ({"cloud_speed": "-3t/s"}, "--cloud-speed -3: must be"),
        ({"cloud_speed": "1ms+2ms+3ms"}, "--cloud-speed"),
        ({"cloud_speed": "1e400t/s"}, "--cloud-speed"),
        ({"rtt": "-1"}, "--rtt -1: must be a number of 0 or more"),
        ({"rtt": "inf"}, "--rtt inf"),
        ({"uplink": "0"}, "--uplink 0: must be a number above 0"),
        ({"uplink": ""}, "--plan needs --uplink"),
        ({"memory": "2 elephants"}, "give a size like 2GiB"),
        ({"memory": "-2GiB"}, "--memory -2"),
        ({"memory": "1"}, "no cut fits"),
        ({"states": "int3"}, "--states int3: must be fp16, int8"),
        ({"tokens": "0,5"}, "--tokens 0,5"),
        ({"tokens": "5"}, "--tokens 5"),
        ({"exit_rates": "3"}, "give layers and shares"),
        ({"exit_rates": "3:1.1"}, "with a share of 0 to 1"),
        ({"exit_rates": "3:nan"}, "with a share of 0 to 1"),
        ({"exit_rates": "3:0.5,3:0.6"}, "each exit once"),
        ({"exit_rates": "8:0.5"}, "no exit is possible after 8 of 8 layers"),
        ({"exit_rates": ",".join(f"{n}:0.5" for n in range(1, 10))}, "at most 8"),
    ],
)
def test_wrong_numbers_are_one_line_and_exit_code_1(
    numbers: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(parser().parse_args(command(**numbers))) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and said in shown.err
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_of_a_model_on_the_hub_only_the_config_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(DEMO)

    monkeypatch.setattr("models.partition.checkpoint.snapshot_download", download)
    args = command()
    args[1] = "owner/model"
    assert run(parser().parse_args(args)) == 0
    assert asked == [("owner/model", ["config.json"])]


def test_without_a_plan_an_output_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parser().parse_args(["--model", str(DEMO), "--exits", "2"])) == 1
    assert "give --output" in capsys.readouterr().err
