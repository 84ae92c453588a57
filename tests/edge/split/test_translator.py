"""A translator in a segment: the exit reads translated states, everybody else those of the last layer; bad files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from common.config_edge import EdgeModelConfig
from common.errors import ConfigError
from common.protocol.split_manifest import SplitManifest, read_manifest
from edge.llama.segment import Feed, LlamaSegment, States
from edge.split.loading import load_segment
from edge.split.translator import Translator
from models.partition.checkpoint import Checkpoint
from models.partition.exit_tensors import WEIGHTS, translator_names
from models.partition.partition import partition
from tests.support import tiny_checkpoints as tiny

MODEL = EdgeModelConfig(context_length=256, threads=1, sequences=2, kv_type="f32", flash_attention=False)
IDS = [1, *range(500, 520)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in pieces, whose exits have translators."""
    import torch

    folder = tmp_path_factory.mktemp("translated")
    tiny.llama(folder / "model", num_hidden_layers=3)
    draw = torch.Generator().manual_seed(5)
    tensors = {
        name: torch.randn((64,) * dimensions, generator=draw)
        for exit in (1, 2)
        for name, dimensions in zip(translator_names(exit), (2, 1), strict=True)
    }
    save_file(tensors, folder / "exits.safetensors", {WEIGHTS: Checkpoint(folder / "model").weights_hash})
    partition(str(folder / "model"), None, folder / "exits.safetensors", "f32", folder / "split")
    return folder


@pytest.fixture(scope="module")
def manifest(model: Path) -> SplitManifest:
    return read_manifest(model / "split")


def head_of(model: Path, exit: int, states: States) -> np.ndarray:
    """The model's own head after an exit's translator, without llama.cpp."""
    weights = load_file(model / "model" / "model.safetensors")
    weight, bias = (load_file(model / "exits.safetensors")[name].numpy() for name in translator_names(exit))
    translated = states @ weight.T + bias
    normed = translated / np.sqrt((translated**2).mean(-1, keepdims=True) + 1e-6)
    logits: np.ndarray = normed * weights["model.norm.weight"].numpy() @ weights["lm_head.weight"].numpy().T
    return logits


def step_of(segment: LlamaSegment, *feeds: Feed) -> tuple[States | None, np.ndarray]:
    step = segment.decode(feeds)
    assert step is not None
    found = None if step.states is None else step.states.copy(), step.logits.copy()
    segment.free()
    return found


def test_the_exit_reads_translated_states_and_the_next_segment_those_of_the_layer(
    model: Path, manifest: SplitManifest
) -> None:
    first = load_segment(manifest, model / "split", 0, MODEL)
    states, logits = step_of(first, Feed(0, IDS, 2), Feed(1, IDS[:5], 1))
    assert states is not None and len(states) == len(IDS) + 5
    wanted = head_of(model, 1, states[[len(IDS) - 2, len(IDS) - 1, len(IDS) + 4]])
    np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    alone, _ = step_of(load_segment(manifest, model / "split", 0, MODEL), Feed(0, IDS, 0))
    assert alone is not None
    np.testing.assert_allclose(
        states[: len(IDS)], alone, rtol=1e-4, atol=1e-4
    )  # without the exit, nothing is translated


@pytest.mark.parametrize("shows_states", [True, False])
def test_a_last_segment_translates_whether_or_not_it_shows_its_states(
    model: Path, manifest: SplitManifest, shows_states: bool
) -> None:
    inputs, _ = step_of(load_segment(manifest, model / "split", 0, MODEL), Feed(0, IDS, 0))
    assert inputs is not None
    after, _ = step_of(load_segment(manifest, model / "split", 1, MODEL), Feed(0, inputs, 0))
    assert after is not None
    last = load_segment(manifest, model / "split", 1, MODEL, shows_states)
    assert last.decode([Feed(0, inputs[:-3], 0)]) is not None  # reads on without its exit
    states, logits = step_of(last, Feed(0, inputs[-3:], 2))
    assert (states is not None) == shows_states
    wanted = head_of(model, 2, after[-2:])
    np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def filled(value: float, shape: tuple[int, ...] = (65, 64), kind: type = np.float32) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.full(shape, value, kind))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (filled(np.nan), "has numbers that are not finite"),
        (filled(np.inf), "has numbers that are not finite"),
        (filled(0, (64, 64)), r"not an array \[65, 64\] in float32"),
        (filled(0, kind=np.float64), r"not an array \[65, 64\] in float32"),
        (lambda path: path.write_bytes(b"garbage"), "not a NumPy array"),
        (lambda path: path.write_bytes(b""), "not a NumPy array"),
        (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "not a NumPy array"),
        (lambda path: None, "not a NumPy array"),
    ],
)
def test_a_file_that_is_no_translator_is_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], object], said: str
) -> None:
    write(tmp_path / "translator-1.npy")
    with pytest.raises(ConfigError, match=said) as refused:
        Translator(tmp_path / "translator-1.npy", 64)
    assert "\n" not in refused.value.message
