"""What vLLM gets on a CPU: the number format, the KV, and a refusal of what is too large for the memory."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloud.engine import args, base, hardware
from cloud.engine.engine import CloudEngine
from cloud.engine.hardware import (
    RUNTIME_BYTES,
    SPARE_TOKENS,
    choose_kv_bytes,
    fit_to,
    refusal,
)
from cloud.engine.model_size import ModelSize, damage, kv_numbers, model_size
from common.errors import StartError
from common.hardware import GIB, Memory
from tests.conftest import CLOUD_MODEL as MODEL

LARGE = ModelSize({"BF16": 1_500_000_000}, kv_numbers=14336, keeps_all=True, trained=32768)
ROOMY = Memory(total=32 * GIB, available=24 * GIB)
FAST = frozenset({"avx512f", "avx512_bf16"})
CONFIG = {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 256}


def left_open(**given: Any) -> SimpleNamespace:
    """Engine arguments that leave everything to the project, but for `given`."""
    auto = {"dtype": "auto", "kv_cache_memory_bytes": None, "num_gpu_blocks_override": None}
    narrow = {"max_model_len": 1024, "max_num_seqs": 32, "block_size": 32}
    return SimpleNamespace(**{"model": "m"} | auto | narrow | given)


# The number format


def test_the_demo_model_is_small_on_every_cpu() -> None:
    arguments = left_open()
    fit_to(arguments, model_size(str(MODEL)), FAST, ROOMY)
    assert arguments.dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "half"])
def test_a_dtype_in_the_configuration_is_kept(dtype: str) -> None:
    arguments = left_open(dtype=dtype)
    assert fit_to(arguments, LARGE, FAST, ROOMY)["dtype"].value == arguments.dtype == dtype


# KV


def test_kv_is_what_all_sequences_can_fill_and_no_more() -> None:
    assert choose_kv_bytes(10 << 20, 32, 24 * GIB).value == 320 << 20
    assert choose_kv_bytes(10 << 20, 32, None).value == 320 << 20


def test_kv_takes_at_most_half_of_the_free_memory_but_always_one_context() -> None:
    assert choose_kv_bytes(GIB, 32, 8 * GIB).value == 4 * GIB
    assert choose_kv_bytes(3 * GIB, 32, 4 * GIB).value == 3 * GIB


def test_kv_leaves_room_for_weights_and_for_vllm_itself() -> None:
    tight = Memory(total=8 * GIB, available=5 * GIB)
    weights = LARGE.weight_bytes("bfloat16") or 0
    kv = fit_to(left_open(), LARGE, FAST, tight)["kv_cache_bytes"].value
    assert kv == (tight.available - weights - RUNTIME_BYTES) // 2


def test_an_unknown_size_of_kv_has_a_fixed_room() -> None:
    assert choose_kv_bytes(None, 32, 24 * GIB).value == GIB


def test_bytes_in_the_configuration_win_and_so_do_blocks() -> None:
    given = left_open(kv_cache_memory_bytes=1 << 26)
    assert fit_to(given, LARGE, FAST, ROOMY)["kv_cache_bytes"].value == given.kv_cache_memory_bytes == 1 << 26
    blocks = left_open(num_gpu_blocks_override=100)
    assert fit_to(blocks, LARGE, FAST, ROOMY)["kv_cache_bytes"].value == 100 * 32 * 14336 * 2


def test_kv_depends_on_the_dtype_and_on_the_context() -> None:
    values = [
        fit_to(left_open(dtype=dtype, max_model_len=length), LARGE, FAST, ROOMY)["kv_cache_bytes"].value
        for dtype, length in (("bfloat16", 1024), ("float32", 1024), ("bfloat16", 2048))
    ]
    token = 32 * 14336 * 2
    assert values == [token * (1024 + SPARE_TOKENS), 2 * token * (1024 + SPARE_TOKENS), token * (2048 + SPARE_TOKENS)]


# Memory


def test_a_model_too_large_for_the_memory_is_refused_with_need_and_supply() -> None:
    poor = Memory(4 * GIB, 2 * GIB)
    with pytest.raises(
        StartError, match=r"^m: needs 2\.8 GiB .*weights 2\.8 GiB in bfloat16.*2\.0 GiB of 4\.0 GiB"
    ) as it:
        fit_to(left_open(), LARGE, FAST, poor)
    assert "\n" not in it.value.message
    assert refusal(2 * GIB, 1, "float32", poor) is not None
    assert refusal(2 * GIB, 0, "float32", poor) is None
    assert refusal(3 * GIB, 0, "float32", Memory(4 * GIB, 2 * GIB, swap=GIB)) is None


def test_the_dtype_decides_whether_a_model_fits() -> None:
    between = Memory(8 * GIB, 4 * GIB)
    fit_to(left_open(dtype="bfloat16"), LARGE, FAST, between)
    with pytest.raises(StartError, match=r"weights 5\.6 GiB in float32"):
        fit_to(left_open(dtype="float32"), LARGE, FAST, between)


def test_what_is_unknown_is_not_refused() -> None:
    fit_to(left_open(), LARGE, FAST, None)
    fit_to(left_open(), ModelSize(None, None, False, None), FAST, Memory(1, 1))
    windowed = LARGE._replace(keeps_all=False, kv_numbers=1 << 30)
    fit_to(left_open(), windowed, FAST, Memory(4 * GIB, 3 * GIB))


async def test_an_engine_too_large_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.hardware, "memory", lambda: Memory(4 << 20, 4 << 20))
    with pytest.raises(StartError, match=r"needs \d+ MiB of memory .*; 4 MiB of 4 MiB are free"):
        await CloudEngine(str(MODEL)).start()


# The size of a model


def checkpoint(folder: Path, config: dict[str, Any], **files: dict[str, tuple[str, list[int]]]) -> Path:
    """A folder with headers of safetensors files, without their data."""
    (folder / "config.json").write_text(json.dumps(config))
    for name, tensors in files.items():
        listed = {tensor: {"dtype": kind, "shape": shape} for tensor, (kind, shape) in tensors.items()}
        header = json.dumps({"__metadata__": {"format": "pt"}, **listed}).encode()
        (folder / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def test_the_demo_models_size_is_read_from_its_files() -> None:
    size = model_size(str(MODEL))
    assert size.weight_bytes("bfloat16") == pytest.approx((MODEL / "model.safetensors").stat().st_size, rel=0.01)
    assert size.weight_bytes("float32") == 2 * (size.weight_bytes("bfloat16") or 0)
    assert (size.kv_bytes("float32"), size.keeps_all, size.trained) == (2 * 8 * 4 * 32 * 4, True, 1024)


def test_floats_take_the_engines_dtype_and_quantized_weights_their_own(tmp_path: Path) -> None:
    tensors = {"a": ("F32", [10, 2]), "b": ("I32", [3]), "c": ("U8", [5]), "d": ("BF16", [])}
    size = model_size(str(checkpoint(tmp_path, CONFIG, model=tensors)))
    assert size.weight_bytes("bfloat16") == 21 * 2 + 3 * 4 + 5


def test_weights_that_are_there_twice_count_once(tmp_path: Path) -> None:
    tensors = {"embed": ("F32", [10]), "lm_head.weight": ("F32", [10])}
    folder = checkpoint(tmp_path, CONFIG | {"tie_word_embeddings": True}, model=tensors, consolidated=tensors)
    assert model_size(str(folder)).weight_bytes("float32") == 40


def test_an_index_names_the_files_and_one_that_is_missing_makes_the_size_unknown(tmp_path: Path) -> None:
    part = {"a": ("F16", [8])}
    folder = checkpoint(tmp_path, CONFIG, one=part, two=part, other=part)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_size(str(folder)).weight_bytes("float16") == 32
    (folder / "two.safetensors").unlink()
    assert model_size(str(folder)).weight_bytes("float16") is None


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": {}}'])
def test_a_damaged_file_makes_the_size_unknown(data: bytes, tmp_path: Path) -> None:
    checkpoint(tmp_path, CONFIG)
    (tmp_path / "model.safetensors").write_bytes(data)
    assert model_size(str(tmp_path)).weight_bytes("float32") is None


def test_a_file_that_is_not_whole_is_named_before_vllm_starts(tmp_path: Path) -> None:
    whole = (MODEL / "model.safetensors").read_bytes()
    file = tmp_path / "model.safetensors"
    file.write_bytes(whole)
    assert damage(tmp_path) is None
    for cut, said in (
        (len(whole) - 1, f"{len(whole) - 1:,} bytes instead of {len(whole):,}"),
        (20, "no list"),
        (0, ""),
    ):
        file.write_bytes(whole[:cut])
        assert f"model.safetensors has {said}" in (damage(tmp_path) or "")
    file.rename(tmp_path / "consolidated.safetensors")
    assert damage(tmp_path) is None  # vLLM does not load it
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    assert damage(tmp_path) == "one.safetensors, which the index names, is missing"
    with pytest.raises(StartError, match=r"one\.safetensors, which the index names, is missing"):
        hardware.fit(left_open(model=str(tmp_path)))


def test_kv_of_the_configuration_that_memory_cannot_hold_is_refused() -> None:
    with pytest.raises(StartError, match=r"83\.8 GiB of KV \(cloud.engine_args.kv_cache_memory_bytes\) and weights"):
        fit_to(left_open(kv_cache_memory_bytes=90 * 10**9), LARGE, FAST, ROOMY)


def test_a_hub_that_is_not_reached_makes_the_size_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(model: str) -> None:
        raise ConnectionError

    monkeypatch.setattr("cloud.engine.model_size.get_safetensors_metadata", offline)
    assert model_size("nobody/nothing") == ModelSize(None, None, True, None)


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({}, 2 * 8 * 4 * 32),
        ({"head_dim": 64}, 2 * 8 * 4 * 64),
        ({"num_key_value_heads": None}, 2 * 8 * 8 * 32),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 8 * 576),
        ({"num_hidden_layers": None}, None),
    ],
)
def test_kv_is_computed_from_the_config(changes: dict[str, Any], numbers: int | None) -> None:
    assert kv_numbers(CONFIG | changes) == numbers


@pytest.mark.parametrize(
    ("changes", "keeps_all"),
    [
        ({"sliding_window": 4096}, False),
        ({"sliding_window": 4096, "use_sliding_window": False}, True),
        ({"layer_types": ["full_attention", "linear_attention"]}, False),
        ({"layer_types": ["full_attention"]}, True),
        ({"mamba_d_state": 16}, False),
    ],
)
def test_layers_that_forget_are_known_from_the_config(changes: dict[str, Any], keeps_all: bool, tmp_path: Path) -> None:
    nested = {"text_config": CONFIG | changes}
    assert model_size(str(checkpoint(tmp_path, nested))).keeps_all is keeps_all


def test_the_arguments_leave_dtype_and_kv_to_the_start() -> None:
    parsed = args.parse(str(MODEL), 16, {})
    assert (parsed.dtype, parsed.kv_cache_memory_bytes) == ("auto", None)


def test_on_few_cores_vllms_thread_is_not_bound_to_the_core_that_every_other_vllm_takes() -> None:
    assert (
        hardware.threads(2, {})
        == hardware.threads(1, {})
        == {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }
    )
    assert hardware.threads(8, {}) == {}
    for name in hardware.BINDING:
        assert hardware.threads(2, {name: "1"}) == {}


async def test_an_engine_starts_with_the_threads_that_fit_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = dict[str, str]()

    def refuse(model: str, args: object, environment: dict[str, str]) -> None:
        seen.update(environment)
        raise StartError("seen")

    monkeypatch.setattr(base, "_start", refuse)
    monkeypatch.setattr(base, "usable_cores", lambda: 2)
    for name in hardware.BINDING:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StartError, match="seen"):
        await CloudEngine(str(MODEL)).start()
    assert seen["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
