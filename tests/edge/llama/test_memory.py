"""Memory: what a model needs is known before it is loaded, and one that does not fit is refused in one line."""

import struct
from pathlib import Path

import pytest

from common.config_edge import EdgeModelConfig
from common.errors import StartError
from common.hardware import GIB, Memory
from edge.llama import model_file
from edge.llama.batch import SequenceTokens
from edge.llama.gguf_header import read_header
from edge.llama.memory import KVShape, kv_shape, refusal
from edge.llama.model import Llama

DEMO = Path("models/demo-edge.gguf")
DATA = DEMO.read_bytes()
CONFIG = EdgeModelConfig(context_length=1024, sequences=4)
SMALL = Memory(total=4 * GIB, available=2 * GIB)
KV = KVShape(numbers=2 * 24 * 2 * 64, trained=32768)
"""Of a model with 24 layers and 2 heads of 64 numbers for keys and values each: 48 MiB for CONFIG."""


def llama_metadata(**other: object) -> dict[str, object]:
    shape = {"block_count": 24, "embedding_length": 896, "context_length": 32768}
    heads = {"attention.head_count": 14, "attention.head_count_kv": 2}
    named = {f"llama.{key}": value for key, value in (shape | heads | other).items()}
    return {"general.architecture": b"llama", **named}


def test_kv_is_computed_from_a_files_header_and_from_a_loaded_model_alike() -> None:
    llama = Llama(EdgeModelConfig(path=str(DEMO), context_length=64, sequences=1))
    loaded = kv_shape(llama.vocabulary.meta)
    llama.free()
    assert loaded is not None and loaded == kv_shape(read_header(DEMO).metadata.get)


def test_a_token_takes_the_kv_that_is_computed() -> None:
    config = EdgeModelConfig(path=str(DEMO), context_length=512, sequences=2, kv_type="f32")
    llama = Llama(config)
    tokens = [5 + at for at in range(200)]
    llama.decode([SequenceTokens(0, tokens, 1)])
    per_token = len(llama.snapshot(0)) / len(tokens)
    shape = kv_shape(llama.vocabulary.meta)
    llama.free()
    assert shape is not None
    # A snapshot holds the KV and some bytes for each token and layer.
    assert shape.numbers * 4 <= per_token < shape.numbers * 4 * 1.1


def test_the_kv_of_a_header_counts_heads_layers_sequences_and_type() -> None:
    assert kv_shape(llama_metadata().get) == KV
    assert kv_shape(llama_metadata(**{"attention.key_length": 128, "attention.value_length": 32}).get) == KVShape(
        24 * 2 * (128 + 32), 32768
    )
    assert kv_shape(llama_metadata(**{"attention.head_count_kv": None}).get) == KVShape(2 * 24 * 14 * 64, 32768)
    assert kv_shape(llama_metadata(**{"attention.sliding_window": 512}).get) == KV
    assert KV.bytes(CONFIG) == 48 << 20
    assert KV.bytes(EdgeModelConfig(context_length=1024, sequences=1, kv_type="f32")) == 24 << 20
    assert KV.bytes(EdgeModelConfig(context_length=1 << 20, sequences=1)) == KV.numbers * 32768 * 2


@pytest.mark.parametrize("key", ["ssm.state_size", "attention.kv_lora_rank"])
def test_a_model_that_keeps_something_else_than_keys_and_values_has_no_estimate(key: str) -> None:
    assert kv_shape(llama_metadata(**{key: 4}).get) is None


@pytest.mark.parametrize("value", [0, "[2, 0, 2]", "many"])
def test_a_header_without_one_number_of_heads_has_no_estimate(value: object) -> None:
    assert kv_shape(llama_metadata(**{"attention.head_count_kv": value}).get) is None
    assert kv_shape({}.get) is None


def test_a_model_that_fits_is_not_refused_nor_one_whose_weights_can_be_paged() -> None:
    assert refusal(GIB, KV, CONFIG, SMALL) is None
    assert refusal(3 * GIB, KV, CONFIG, SMALL) is None
    assert refusal(3 * GIB, KV, CONFIG, Memory(4 * GIB, 0, swap=GIB)) is None


def test_weights_beyond_the_whole_memory_are_refused_with_need_and_supply() -> None:
    parts = "weights 5.0 GiB, KV of 4 sequences of 1024 tokens 48 MiB"
    assert refusal(5 * GIB, KV, CONFIG, SMALL) == f"needs 5.0 GiB of memory ({parts}); 2.0 GiB of 4.0 GiB are free"
    assert refusal(5 * GIB, None, CONFIG, SMALL) is not None


def test_kv_beyond_the_free_memory_is_refused() -> None:
    long = EdgeModelConfig(context_length=32768, sequences=8)
    assert 2 * GIB < KV.bytes(long) < 4 * GIB
    assert "KV of 8 sequences of 32768 tokens 3.0 GiB" in (refusal(GIB // 2, KV, long, SMALL) or "")
    assert refusal(GIB // 2, KV, long, Memory(4 * GIB, 2 * GIB, swap=2 * GIB)) is None


def test_nothing_is_refused_on_a_gpu_or_where_the_memory_is_unknown() -> None:
    assert refusal(5 * GIB, KV, EdgeModelConfig(gpu_layers=-1), SMALL) is None
    assert refusal(5 * GIB, KV, CONFIG, None) is None


async def test_a_context_that_no_memory_holds_is_one_line_before_the_model_is_loaded(tmp_path: Path) -> None:
    file, key = tmp_path / "long.gguf", b"llama.context_length"
    at = DATA.index(key) + len(key) + 4
    file.write_bytes(DATA[:at] + struct.pack("<I", 1 << 30) + DATA[at + 4 :])
    many = EdgeModelConfig(path=str(file), context_length=1 << 30, sequences=64)
    with pytest.raises(StartError, match=r"needs [\d.]+ GiB of memory \(weights .*\); [\d.]+ GiB of .* free") as error:
        await model_file.prepare(many)
    assert "\n" not in error.value.message
