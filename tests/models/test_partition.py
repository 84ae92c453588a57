"""Cutting a model: the pieces compute what the whole does; wrong input is refused before anything is written."""

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.config_edge import EdgeModelConfig
from common.errors import ConfigError
from common.protocol.split_manifest import SplitManifest, read_manifest
from edge.llama import gguf_header, quantize
from edge.llama.segment import CHUNK, Feed
from edge.split.loading import load_segment
from models.partition import exit_tensors as exit_names
from models.partition import gguf_export, gguf_vocabulary, partition, tail
from models.partition.checkpoint import Checkpoint, find
from models.partition.exit_tensors import exits_of
from models.partition.partition import partition as cut
from tests.support import tiny_checkpoints as tiny

ROOT = Path(__file__).parents[2]
DEMO, DEMO_EXITS = ROOT / "models" / "demo-cloud", ROOT / "models" / "demo-cloud-exits.safetensors"
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

SHAPES: dict[str, Callable[[Path], Path]] = {
    "llama": tiny.llama,
    "llama, in shards, Llama 3's positions": lambda f: tiny.llama(f, shard="500KB", rope_parameters=LLAMA3),
    "llama, tied, biases, linear positions": lambda f: tiny.llama(
        f, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_parameters=LINEAR
    ),
    "llama, large heads, YaRN": lambda f: tiny.llama(f, head_dim=32, num_key_value_heads=4, rope_parameters=YARN),
    "qwen2": tiny.qwen2,
    "qwen2, tied, in shards, YaRN": lambda f: tiny.qwen2(
        f, shard="500KB", tie_word_embeddings=True, rope_parameters=YARN
    ),
    "qwen2, more rows than tokens": lambda f: tiny.qwen2(f, vocab_size=4160),
    "qwen3": tiny.qwen3,
    "qwen3, tied, YaRN": lambda f: tiny.qwen3(f, tie_word_embeddings=True, rope_parameters=YARN),
    "mistral": tiny.mistral,
    "gemma 3": tiny.gemma3,
    "phi-3": tiny.phi3,
}
IDS = [1, *range(500, 620), 2, *range(40, 60)]


MODEL = EdgeModelConfig(context_length=CHUNK, threads=1, sequences=1, kv_type="f32", flash_attention=False)


def chained(manifest: SplitManifest, folder: Path) -> list[np.ndarray]:
    """The logits after each of IDS at every exit, then the tail's; each piece takes the states of the one before."""
    inputs: Any = IDS
    found = []
    states: list[np.ndarray] = []
    manifest.check_segments(folder)
    for number in range(len(manifest.segments)):
        segment = load_segment(manifest, folder, number, MODEL)
        step = segment.decode([Feed(0, inputs, len(inputs))])
        assert step and step.states is not None
        found.append(step.logits.copy())
        inputs = step.states.copy()
        states.append(inputs)
        segment.free()
    tail = AutoModelForCausalLM.from_pretrained(manifest.check_tail(folder), dtype=torch.float32)
    with torch.no_grad():
        found.append(tail(inputs_embeds=torch.from_numpy(states[0])[None]).logits[0].numpy())
    return found


def of_the_whole(model: Path, exits: list[int]) -> list[np.ndarray]:
    """The logits of the whole model's own norm and head after these numbers of layers, and at its end."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        out = whole(torch.tensor([IDS]), output_hidden_states=True)
        early = [whole.lm_head(whole.model.norm(out.hidden_states[exit]))[0].numpy() for exit in exits]
    return [*early, out.logits[0].numpy()]


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_in_a_chain_compute_what_the_whole_model_does(shape: str, tmp_path: Path) -> None:
    model = SHAPES[shape](tmp_path / "model")
    cut(str(model), [1, 3], None, "f32", tmp_path / "split")
    manifest = read_manifest(tmp_path / "split")
    for found, wanted in zip(chained(manifest, tmp_path / "split"), of_the_whole(model, [1, 3]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())
        assert (found.argmax(-1) == wanted.argmax(-1)).all()


def test_segments_of_the_models_own_head_have_one_copy_of_it(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model", num_hidden_layers=3)
    cut(str(model), [1, 2], None, "f32", tmp_path / "split")
    embeddings = 4096 * 64 * 4
    for name in ("segment-1.gguf", "segment-2.gguf"):
        assert (tmp_path / "split" / name).stat().st_size < embeddings / 2
    assert 2 * embeddings < (tmp_path / "split" / "vocabulary.gguf").stat().st_size < 2.1 * embeddings


@pytest.mark.parametrize("family", [tiny.mistral, tiny.phi3])
def test_the_context_ends_where_a_window_that_llama_cpp_does_not_have_begins(
    family: Callable[..., Path], tmp_path: Path
) -> None:
    assert Checkpoint(family(tmp_path / "model", sliding_window=40)).config.context == 40
    assert Checkpoint(family(tmp_path / "other", sliding_window=None)).config.context == 512


@pytest.mark.parametrize("exits", [[1], [4], [1, 2, 3, 4], [2, 4]])
def test_any_number_of_exits_is_possible(exits: list[int], tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model")
    cut(str(model), exits, None, "f32", tmp_path / "split")
    manifest = read_manifest(tmp_path / "split")
    assert [segment.last + 1 for segment in manifest.segments] == manifest.exits == exits
    assert len(Checkpoint(tmp_path / "split" / "tail").names(range(0))) == 3
    for found, wanted in zip(chained(manifest, tmp_path / "split"), of_the_whole(model, exits), strict=True):
        assert (found.argmax(-1) == wanted.argmax(-1)).all()


def test_the_demo_is_cut_with_its_trained_exits(tmp_path: Path) -> None:
    cut(str(DEMO), None, DEMO_EXITS, "f32", tmp_path / "split")
    manifest = read_manifest(tmp_path / "split")
    assert manifest.exits == exits_of(DEMO_EXITS) == [2, 4]
    logits = chained(manifest, tmp_path / "split")
    assert (logits[-1].argmax(-1) == of_the_whole(DEMO, [])[-1].argmax(-1)).all()
    whole = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    trained = load_file(DEMO_EXITS)
    with torch.no_grad():
        states = whole(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    for exit, found in zip(manifest.exits, logits, strict=False):
        norm, head = trained[exit_names.norm_name(exit)].float(), trained.get(exit_names.head_name(exit))
        matrix = whole.lm_head.weight if head is None else head.float()
        wanted = torch.nn.functional.rms_norm(states[exit][0], norm.shape, norm, 1e-6) @ matrix.T
        assert (torch.from_numpy(found).argmax(-1) == wanted.argmax(-1)).all()


@pytest.mark.parametrize("quantization", gguf_export.QUANTIZATIONS)
def test_every_quantization_is_read_by_llama_cpp(quantization: str, tmp_path: Path) -> None:
    cut(str(tiny.llama(tmp_path / "model", num_hidden_layers=2)), [1], None, quantization, tmp_path / "split")
    manifest = read_manifest(tmp_path / "split")
    assert {segment.quantization for segment in manifest.segments} == {quantization}
    assert manifest.check_segments(tmp_path / "split")


@pytest.mark.parametrize("quantization", ["q6_k", "q4_k_m"])
def test_llama_cpp_quantizes_its_own_types(quantization: str, tmp_path: Path) -> None:
    cut(str(DEMO), [2, 4], None, quantization, tmp_path / "split")
    names = {path.name for path in (tmp_path / "split").iterdir()}
    assert names == {"manifest.json", "segment-1.gguf", "segment-2.gguf", "vocabulary.gguf", "tail"}
    header = gguf_header.read_header(tmp_path / "split" / "segment-2.gguf")
    assert header.metadata["general.file_type"] == quantize.TYPES[quantization]


def test_fewer_bits_make_smaller_segments(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model", num_hidden_layers=2)
    sizes = []
    for quantization in ("f32", "f16", "q8_0", "q4_0"):
        cut(str(model), [1], None, quantization, tmp_path / "split")
        sizes.append((tmp_path / "split" / "segment-1.gguf").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)


def test_a_piece_that_is_cut_wrongly_is_found_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_export, "_interleave_rotary_pairs", lambda rows, heads: rows)
    model = tiny.llama(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"segment-1\.gguf is cut wrongly"):
        cut(str(model), [1, 3], None, "f32", tmp_path / "split")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tail_with_another_layer_in_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = partition.write_tail

    def shifted(checkpoint: Checkpoint, first: int, folder: Path, done: Any) -> None:
        write(checkpoint, first, folder, done)
        weights = load_file(folder / "model.safetensors")
        name = "model.layers.{}.mlp.down_proj.weight"
        weights[name.format(0)], weights[name.format(1)] = weights[name.format(1)], weights[name.format(0)]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(partition, "write_tail", shifted)
    with pytest.raises(ConfigError, match="tail is cut wrongly"):
        cut(str(tiny.llama(tmp_path / "model")), [1, 3], None, "f32", tmp_path / "split")


@pytest.mark.parametrize("pre_tokenizer", ["llama-bpe", "qwen2"])
def test_llama_cpp_reads_text_as_the_models_tokenizer_does(pre_tokenizer: str, tmp_path: Path) -> None:
    model = (tiny.llama if pre_tokenizer == "llama-bpe" else tiny.qwen2)(tmp_path / "model", vocab_size=800)
    tiny.give_byte_level_tokenizer(model, pre_tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert_same_tokens(model, tmp_path, partial(tokenizer.encode, add_special_tokens=False))


def test_llama_cpp_reads_text_as_sentencepiece_does(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model", vocab_size=640)
    tiny.give_sentence_pieces(model, tmp_path)
    # Transformers drops a space before a text, SentencePiece itself does not.
    assert_same_tokens(model, tmp_path, sentencepiece.SentencePieceProcessor(str(model / "tokenizer.model")).encode)


def assert_same_tokens(model: Path, tmp_path: Path, encode: Callable[[str], list[int]]) -> None:
    cut(str(model), [2], None, "f16", tmp_path / "split")
    segment = load_segment(read_manifest(tmp_path / "split"), tmp_path / "split", 0, MODEL)
    for text in ("It's 12345 o'clock, isn't it?", "  two  spaces\n\nlines\t", "naïve café 東京 🙂", "DON'T x=1;"):
        assert segment.vocabulary.tokenize(text.encode(), False, True) == encode(text)
    segment.free()


def test_a_vocabulary_that_llama_cpp_reads_differently_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = gguf_vocabulary._byte_level

    def shifted(path: Path) -> Any:
        texts, types, scores = tokens(path)
        return [*texts[:300], *texts[301:], texts[300]], types, scores

    monkeypatch.setattr(gguf_vocabulary, "_byte_level", shifted)
    with pytest.raises(ConfigError, match="into other tokens than the model's own tokenizer"):
        cut(str(tiny.llama(tmp_path / "model")), [2], None, "f16", tmp_path / "split")


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def without_tensor(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors")


def with_garbage(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 100)


def with_another_pre_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": {"type": "Whitespace"}}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (with_config(architectures=["MixtralForCausalLM"]), r"only LlamaForCausalLM, .* or Phi3ForCausalLM can be cut"),
        (with_config(architectures=None), "can be cut"),
        (with_config(hidden_size="many"), "hidden_size"),
        (with_config(num_hidden_layers=6), "is missing"),
        (with_config(intermediate_size=96), "the config says"),
        (with_config(rope_parameters={"rope_type": "dynamic", "factor": 2.0}), "'dynamic' are not supported"),
        (with_config(hidden_act="gelu"), "'gelu' is not supported"),
        (with_config(use_sliding_window=True), "no sliding window"),
        (with_config(final_logit_softcapping=30.0), "capped logits are not supported"),
        (with_config(partial_rotary_factor=0.75), "only a part of each head"),
        (with_config(quantization_config={"quant_method": "fp8"}), "quantized already"),
        (with_config(vocab_size=99), "the config says"),
        (without_tensor, r"tensor model\.layers\.3\.mlp\.up_proj\.weight is missing"),
        (with_garbage, r"model\.safetensors"),
        (with_another_pre_tokenizer, "pre-tokenizer is not known"),
        (lambda model: (model / "tokenizer.json").unlink(), r"no tokenizer\.json and no tokenizer\.model"),
        (lambda model: (model / "model.safetensors").unlink(), r"model\.safetensors"),
        (lambda model: (model / "config.json").unlink(), "No such file"),
        (lambda model: shutil.rmtree(model), "no such folder"),
    ],
)
def test_a_wrong_checkpoint_is_refused_in_one_line(harm: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    harm(tiny.llama(tmp_path / "model"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=said) as refused:
        cut(str(tmp_path / "model"), [1, 3], None, "f32", tmp_path / "split")
    assert "\n" not in refused.value.message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("exits", [[0, 3], [1, 5], [3, 1], [2, 2], [-1]])
def test_exits_outside_the_model_are_refused(exits: list[int], tmp_path: Path) -> None:
    tiny.llama(tmp_path / "model")
    with pytest.raises(ConfigError, match="--exits"):
        cut(str(tmp_path / "model"), exits, None, "f32", tmp_path / "split")
    assert not (tmp_path / "split").exists()


def test_rows_that_do_not_fit_a_quantization_are_refused(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model", intermediate_size=144)
    with pytest.raises(ConfigError, match=r"mlp\.down_proj\.weight are no multiples of 32"):
        cut(str(model), [2], None, "q8_0", tmp_path / "split")
    assert not (tmp_path / "split").exists()


def exits_file(path: Path, **tensors: torch.Tensor) -> Path:
    whole = {
        exit_names.norm_name(2): torch.ones(64),
        exit_names.head_name(2): torch.ones(4096, 64),
        exit_names.temperature_name(2): torch.ones(1),
    }
    save_file(whole | {name.replace("_", "."): tensor for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"exit_2_norm_weight": torch.ones(65)}, "exit.2.norm.weight"),
        ({"exit_2_head_weight": torch.ones(4095, 64)}, "exit.2.head.weight"),
        ({"exit_2_temperature": torch.ones(2)}, "exit.2.temperature"),
        ({"exit_2_temperature": torch.zeros(1)}, "a temperature is not above 0"),
        ({"exit_2_temperature": torch.full((1,), torch.nan)}, "a temperature is not above 0"),
        ({"exit_2_confident": torch.ones(2)}, "exit.2.confident"),
        ({"exit_x_norm_weight": torch.ones(64)}, "does not belong to an exit"),
        ({"colour": torch.ones(64)}, "does not belong to an exit"),
    ],
)
def test_exits_of_another_model_are_refused(tensors: dict[str, torch.Tensor], said: str, tmp_path: Path) -> None:
    tiny.llama(tmp_path / "model")
    path = exits_file(tmp_path / "exits.safetensors", **tensors)
    with pytest.raises(ConfigError, match=said):
        cut(str(tmp_path / "model"), [2], path, "f32", tmp_path / "split")
    with pytest.raises(ConfigError, match="No such file"):
        cut(str(tmp_path / "model"), [2], tmp_path / "none.safetensors", "f32", tmp_path / "split")
    assert not (tmp_path / "split").exists()


def translator_file(model: Path, path: Path, weights: str | None = None, **tensors: torch.Tensor) -> Path:
    """The exits of `model` after 2 layers: a translator that swaps halves of states and adds a number."""
    names = exit_names.translator_names(2)
    whole = {names[0]: torch.eye(64).roll(32, 0), names[1]: torch.full((64,), 0.5)}
    changes = {name: tensor for name in names for part, tensor in tensors.items() if name.endswith(part)}
    save_file(
        whole | changes, path, {exit_names.WEIGHTS: Checkpoint(model).weights_hash if weights is None else weights}
    )
    return path


def test_an_exit_with_a_translator_computes_the_models_head_after_it(tmp_path: Path) -> None:
    model = tiny.qwen3(tmp_path / "model", num_hidden_layers=3, tie_word_embeddings=True)
    path = translator_file(model, tmp_path / "exits.safetensors")
    cut(str(model), None, path, "f32", tmp_path / "split")
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        states = whole(torch.tensor([IDS]), output_hidden_states=True).hidden_states[2][0]
        wanted = whole.lm_head(whole.model.norm(states.roll(32, -1) + 0.5)).numpy()
    found = chained(read_manifest(tmp_path / "split"), tmp_path / "split")[0]
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())
    assert (found.argmax(-1) == wanted.argmax(-1)).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "0" * 64}, "trained for a model with other weights"),
        ({"weights": ""}, "trained for a model with other weights"),
        ({"weight": torch.eye(63)}, r"translator\.weight is \(63, 63\), the model's is \(64, 64\)"),
        ({"bias": torch.full((64,), torch.nan)}, "has numbers that are not finite"),
    ],
)
def test_translators_of_another_model_or_damaged_ones_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = tiny.llama(tmp_path / "model")
    path = translator_file(model, tmp_path / "exits.safetensors", **changes)
    with pytest.raises(ConfigError, match=said) as refused:
        cut(str(model), None, path, "f32", tmp_path / "split")
    assert "\n" not in refused.value.message
    with pytest.raises(ConfigError, match="has exits after 2 layers, not 1"):
        cut(str(model), [1], path, "f32", tmp_path / "split")


def test_trained_heads_and_temperatures_come_from_their_file(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model")
    head = torch.randn(4096, 64, generator=torch.Generator().manual_seed(3))
    path = exits_file(tmp_path / "exits.safetensors", exit_2_head_weight=head, exit_2_temperature=torch.tensor([0.5]))
    cut(str(model), None, path, "f32", tmp_path / "split")
    manifest = read_manifest(tmp_path / "split")
    assert manifest.temperatures == [0.5]
    assert manifest.exits_trained
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        states = whole(torch.tensor([IDS]), output_hidden_states=True).hidden_states[2][0]
    wanted = torch.nn.functional.rms_norm(states, (64,), eps=1e-6) @ head.T
    assert (chained(manifest, tmp_path / "split")[0].argmax(-1) == wanted.argmax(-1).numpy()).all()


def test_other_weights_or_another_cut_have_another_fingerprint(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model")
    first = Checkpoint(model).fingerprint(2)
    assert Checkpoint(model).fingerprint(2) == first != Checkpoint(model).fingerprint(1)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, model / "model.safetensors")
    assert Checkpoint(model).fingerprint(2) != first


def test_only_an_earlier_partition_is_replaced_and_as_a_whole(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "model")
    cut(str(model), [1, 2, 3], None, "f32", tmp_path / "split")
    cut(str(model), [2], None, "q8_0", tmp_path / "split")
    pieces = ["manifest.json", "segment-1.gguf", "tail", "vocabulary.gguf"]
    assert sorted(p.name for p in (tmp_path / "split").iterdir()) == pieces
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("work of years")
    for mine in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(ConfigError, match="is neither empty nor an earlier partition"):
            cut(str(model), [2], None, "q8_0", mine)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "work of years"


def test_a_model_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama(tmp_path / "model", num_hidden_layers=12, vocab_size=4096, tie_word_embeddings=True)
    monkeypatch.setattr(tail, "SHARD", 1)
    read, alive, peak = Checkpoint.tensor, dict[int, int](), [0]

    def counted(checkpoint: Checkpoint, name: str) -> torch.Tensor:
        tensor = read(checkpoint, name)
        alive[id(tensor)] = tensor.nbytes
        weakref.finalize(tensor, alive.pop, id(tensor))
        peak[0] = max(peak[0], sum(alive.values()))
        return tensor

    monkeypatch.setattr(Checkpoint, "tensor", counted)
    cut(str(model), [2, 4], None, "f32", tmp_path / "split")
    AutoModelForCausalLM.from_pretrained(tmp_path / "split" / "tail")  # a file for each tensor, and an index
    assert peak[0] < 0.6 * sum(path.stat().st_size for path in Checkpoint(model).weight_files)


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "models.partition", "--model", str(tmp_path / "none"), "--exits", "2"]
    done = subprocess.run([*command, "--output", str(tmp_path / "split")], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: model {tmp_path / 'none'}: no such folder\n"


def test_a_model_is_a_local_folder_or_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append(repository)
        return str(tmp_path)

    monkeypatch.setattr("models.partition.checkpoint.snapshot_download", download)
    assert find("owner/model") == tmp_path == find(str(tmp_path))
    assert asked == ["owner/model"]
    for wrong in ("./nothing", "nothing", "a/b/c", str(tmp_path / "x" / "y")):
        with pytest.raises(ConfigError, match="no such folder"):
            find(wrong)
