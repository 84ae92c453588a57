"""A segment in llama.cpp: its states equal the whole model's, however it is fed; its exit is computed on request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from common.config_edge import EdgeModelConfig
from common.errors import ConfigError, EngineError, StartError
from common.protocol.split_manifest import SplitManifest, read_manifest
from edge.llama.segment import CHUNK, Feed, LlamaSegment, SegmentShape, States
from edge.split.loading import load_segment
from tests.conftest import CLOUD_MODEL

TEXT = "<|user|>What is the capital of France?<|assistant|>The capital of France is Paris.<|end|>"
TOLERANCE = 1e-4
"""For states with values up to a few tens: the effect of summing float32 in another order."""


def load(manifest: SplitManifest, folder: Path, number: int, shows_states: bool = True) -> LlamaSegment:
    model = EdgeModelConfig(context_length=256, threads=1, kv_type="f32")
    return load_segment(manifest, folder, number, model, shows_states)


@pytest.fixture(scope="module")
def manifest(demo_split: Path) -> SplitManifest:
    return read_manifest(demo_split)


@pytest.fixture
def first(manifest: SplitManifest, demo_split: Path) -> Iterator[LlamaSegment]:
    segment = load(manifest, demo_split, 0)
    yield segment
    segment.free()


@pytest.fixture
def second(manifest: SplitManifest, demo_split: Path) -> Iterator[LlamaSegment]:
    segment = load(manifest, demo_split, 1)
    yield segment
    segment.free()


@pytest.fixture
def ids(first: LlamaSegment) -> list[int]:
    return first.vocabulary.tokenize(TEXT.encode(), False, True)


@pytest.fixture(scope="module")
def whole() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CLOUD_MODEL, dtype=torch.float32).eval()

    def states(ids: list[int]) -> list[States]:
        with torch.no_grad():
            return [h[0].numpy() for h in model(torch.tensor([ids]), output_hidden_states=True).hidden_states]

    return states


def states_of(segment: LlamaSegment, *feeds: Feed) -> States:
    step = segment.decode(feeds)
    assert step is not None and step.states is not None
    return step.states.copy()


def test_a_chain_of_segments_computes_the_whole_models_states(
    first: LlamaSegment, second: LlamaSegment, ids: list[int], whole: Any, manifest: SplitManifest
) -> None:
    after_first = states_of(first, Feed(0, ids, 0))
    after_second = states_of(second, Feed(0, after_first, 0))
    for states, layers in zip((after_first, after_second), manifest.exits, strict=True):
        np.testing.assert_allclose(states, whole(ids)[layers], atol=TOLERANCE, rtol=TOLERANCE)


def test_a_segment_that_is_fed_other_states_computes_other_states(
    first: LlamaSegment, second: LlamaSegment, ids: list[int], whole: Any, manifest: SplitManifest
) -> None:
    """The control of the test above: it would detect a segment that is fed the embeddings."""
    states = states_of(second, Feed(0, whole(ids)[0], 0))
    assert not np.allclose(states, whole(ids)[manifest.exits[1]], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("portion", [1, 5])
@pytest.mark.parametrize("exit_wanted", [False, True], ids=["no exit", "exit"])
def test_states_depend_neither_on_the_portions_nor_on_the_exit(
    first: LlamaSegment, ids: list[int], portion: int, exit_wanted: bool
) -> None:
    at_once = states_of(first, Feed(0, ids, 0))
    portions = [
        states_of(first, Feed(1, ids[begin : begin + portion], int(exit_wanted)))
        for begin in range(0, len(ids), portion)
    ]
    np.testing.assert_allclose(np.concatenate(portions), at_once, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_exit_is_computed_after_the_requested_inputs(first: LlamaSegment, ids: list[int]) -> None:
    every = first.decode([Feed(0, ids, len(ids))])
    assert every is not None and every.logits.shape == (len(ids), first.vocab_size)
    rows = every.logits.copy()
    first.forget(0)
    some = first.decode([Feed(0, ids[:-4], 2), Feed(1, ids[:3], 0), Feed(2, ids[:5], 1)])
    assert some is not None and some.logits.shape == (3, first.vocab_size)
    np.testing.assert_allclose(some.logits, rows[[len(ids) - 6, len(ids) - 5, 4]], atol=1e-3)


def test_logits_of_single_inputs_are_not_copied(first: LlamaSegment, ids: list[int]) -> None:
    step = first.decode([Feed(0, ids[:1], 1), Feed(1, ids[:1], 1)])
    again = first.decode([Feed(0, ids[1:2], 1), Feed(1, ids[1:2], 1)])
    assert step is not None and again is not None
    assert np.shares_memory(step.logits, again.logits)


def test_a_segment_that_returns_no_states_computes_the_same_exit(
    manifest: SplitManifest, demo_split: Path, first: LlamaSegment, second: LlamaSegment, ids: list[int]
) -> None:
    states = states_of(first, Feed(0, ids, 0))
    shown = second.decode([Feed(0, states, 1)])
    silent = load(manifest, demo_split, 1, shows_states=False)
    step = silent.decode([Feed(0, states, 1)])
    assert shown is not None and step is not None and step.states is None
    np.testing.assert_allclose(step.logits, shown.logits, atol=1e-3)
    silent.free()


def test_sequences_of_one_step_do_not_affect_each_other(first: LlamaSegment, ids: list[int]) -> None:
    alone = states_of(first, Feed(0, ids, 0))
    lengths = len(ids), 3, 1, 7
    together = states_of(first, *(Feed(at, ids[:length], 0) for at, length in enumerate(lengths) if at))
    begin = 0
    for length in lengths[1:]:
        np.testing.assert_allclose(together[begin : begin + length], alone[:length], atol=TOLERANCE, rtol=TOLERANCE)
        begin += length


def test_a_forgotten_sequence_is_like_a_new_one(first: LlamaSegment, ids: list[int]) -> None:
    fresh = states_of(first, Feed(0, ids, 0))
    first.forget(0)
    assert first.held[0] == 0
    np.testing.assert_array_equal(states_of(first, Feed(0, ids, 0)), fresh)


def test_an_aborted_step_leaves_every_sequence_as_it_was(first: LlamaSegment, ids: list[int]) -> None:
    states_of(first, Feed(0, ids[:-1], 0))
    first.abort(True)
    assert first.decode([Feed(0, ids[-1:], 1), Feed(1, ids, 0)]) is None
    first.abort(False)
    assert first.held == [len(ids) - 1, 0, 0, 0]
    last = states_of(first, Feed(0, ids[-1:], 1))
    np.testing.assert_allclose(last[0], states_of(first, Feed(1, ids, 0))[-1], atol=TOLERANCE, rtol=TOLERANCE)


def test_after_an_error_its_sequences_hold_nothing(first: LlamaSegment, ids: list[int]) -> None:
    states_of(first, Feed(0, ids, 0))
    with pytest.raises(EngineError, match="could not decode"):
        first.decode([Feed(0, [10**6], 0)])
    assert first.held[0] == 0


def test_a_segment_of_another_shape_is_refused(manifest: SplitManifest, demo_split: Path) -> None:
    model = EdgeModelConfig(path=str(demo_split / manifest.segments[0].file), context_length=CHUNK, sequences=1)
    for shape in (SegmentShape(3, 256, 4096), SegmentShape(2, 128, 4096), SegmentShape(2, 256, 4095)):
        with pytest.raises(ConfigError, match=r"has 2 layers, 256 numbers per state, 4096 tokens; its manifest says"):
            LlamaSegment(model, shape, first=True)
    with pytest.raises(StartError, match="not a GGUF file"):
        LlamaSegment(replace(model, path=str(demo_split / "manifest.json")), SegmentShape(2, 256, 4096), first=True)
