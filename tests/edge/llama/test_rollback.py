"""Whatever a sequence went through, it goes on as if its tokens had just been decoded: on every kind of memory."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp as c
import numpy as np
import pytest

from common.config_edge import EdgeModelConfig
from edge.llama import rollback
from edge.llama.batch import SequenceTokens
from edge.llama.model import Llama
from edge.llama.rollback import MAX_KEPT, CutRollback, WindowRollback
from edge.llama.sampling import Logits
from tests.edge.llama.random_models import KINDS, RECURRENT, WINDOW

ROUNDING = 0.02
"""How far logits, whose standard deviation is 1, differ when the same tokens were decoded in other portions."""
BOTH_LAYOUTS = pytest.mark.parametrize("unified", [False, True], ids=["own", "unified"])
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@contextmanager
def loaded(path: Path, **settings: int | str | bool) -> Iterator[Llama]:
    llama = Llama(EdgeModelConfig(path=str(path), threads=1, **{"context_length": 256, "sequences": 3} | settings))  # type: ignore[arg-type]
    try:
        yield llama
    finally:
        llama.free()


def tokens(source: random.Random, count: int) -> list[int]:
    return [source.randrange(10, 4000) for _ in range(count)]


def decode(llama: Llama, sequence: int, ids: list[int]) -> Logits:
    rows = llama.decode([SequenceTokens(sequence, ids, 1)])
    assert rows is not None
    return rows[0].copy()


def assert_goes_on(llama: Llama, sequence: int, fresh: Llama) -> None:
    """Compares the next logits with those of a context that decodes all tokens at once."""
    fresh.rewind(0, 0)
    ids = [*llama.held[sequence], 7]
    assert np.abs(decode(llama, sequence, [7]) - decode(fresh, 0, ids)).max() < ROUNDING


@BOTH_LAYOUTS
@EVERY_KIND
def test_after_any_rewinds_copies_and_snapshots_it_goes_on_as_a_fresh_context(
    models: dict[str, Path], kind: str, unified: bool
) -> None:
    source = random.Random(3)
    snapshots: list[tuple[bytes, list[int]]] = []
    with loaded(models[kind], kv_unified=unified) as llama, loaded(models[kind], sequences=1) as fresh:
        for _ in range(120):
            sequence, length = source.randrange(3), source.choice([0, 5, 40, 200])
            held = llama.held[sequence]
            match source.choice(
                ["read", "draw", "checkpoint", "rewind", "copy", "snapshot", "load", "abort", "compare"]
            ):
                case "read" if len(held) < 180:
                    decode(llama, sequence, tokens(source, source.randrange(1, 60)))
                case "draw" if len(held) < 220:
                    for token in tokens(source, source.randrange(1, 20)):
                        decode(llama, sequence, [token])
                case "checkpoint":
                    llama.checkpoint(sequence, of_prompt=source.random() < 0.3)
                case "rewind":
                    before, wanted = list(held), max(0, len(held) - source.randrange(20))
                    reusable = llama.reusable(sequence, wanted)
                    assert llama.rewind(sequence, wanted) == reusable == len(held) <= wanted
                    assert held == before[:reusable]
                case "copy":
                    other = source.randrange(3)
                    llama.copy(other, sequence, min(length, len(llama.held[other])))
                case "snapshot" if held:
                    snapshots.append((llama.snapshot(sequence), list(held)))
                case "load" if snapshots:
                    assert llama.load_snapshot(sequence, *source.choice(snapshots))
                case "abort" if len(held) < 200:
                    llama.abort(True)
                    assert llama.decode([SequenceTokens(sequence, tokens(source, 9), 1)]) is None
                    llama.abort(False)
                case "compare" if len(held) < 240:
                    assert_goes_on(llama, sequence, fresh)
        for sequence in range(3):
            llama.rewind(sequence, 240)
            assert_goes_on(llama, sequence, fresh)


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_model_goes_back_to_its_newest_checkpoint_and_no_further(
    models: dict[str, Path], kind: str
) -> None:
    source = random.Random(4)
    with loaded(models[kind]) as llama, loaded(models[kind], sequences=1) as fresh:
        decode(llama, 0, tokens(source, 100))
        llama.checkpoint(0)
        for token in tokens(source, 16):
            decode(llama, 0, [token])
        llama.copy(0, 1, 110)
        llama.copy(0, 2, 99)
        assert [len(held) for held in llama.held] == [116, 100, 0]
        assert llama.rewind(0, 110) == 100
        assert_goes_on(llama, 0, fresh)
        assert_goes_on(llama, 1, fresh)


@pytest.mark.parametrize("kind", RECURRENT)
def test_checkpoints_are_few_and_lie_where_they_are_needed(models: dict[str, Path], kind: str) -> None:
    """Those of the last prompts stay, and the nearer to the end, the denser are those of drafts."""
    source, draft = random.Random(5), 4
    with loaded(models[kind], context_length=512) as llama:
        for prompt in (20, 50):
            decode(llama, 0, tokens(source, prompt - len(llama.held[0])))
            llama.checkpoint(0, of_prompt=True)
        for _ in range(100):
            decode(llama, 0, tokens(source, draft))
            llama.checkpoint(0)
            end = len(llama.held[0])
            found = {llama.reusable(0, length) for length in range(1, end + 1)}
            assert {20, 50} <= found and len(found) <= MAX_KEPT + 1
            for back in range(1, min(64, end - 50)):
                assert end - back - llama.reusable(0, end - back) <= 3 * back + draft


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in RECURRENT])
def test_other_models_go_back_to_any_token_without_checkpoints(models: dict[str, Path], kind: str) -> None:
    source = random.Random(6)
    with loaded(models[kind]) as llama:
        assert not llama.takes_checkpoints
        decode(llama, 0, tokens(source, 200))
        for length in (190, 60, 3):
            llama.copy(0, 1, length)
            assert len(llama.held[1]) == llama.rewind(0, length) == length


def test_a_window_as_long_as_the_context_is_no_window(models: dict[str, Path]) -> None:
    """The snapshots then hold all tokens and can be cut."""
    source = random.Random(8)
    with loaded(models["gemma3"], context_length=WINDOW) as llama, loaded(models["gemma3"], sequences=1) as fresh:
        decode(llama, 0, tokens(source, WINDOW))
        assert llama.divisible and llama.load_snapshot(1, llama.snapshot(0), llama.held[0])
        assert llama.rewind(1, 5) == 5
        assert_goes_on(llama, 1, fresh)


def test_cells_that_left_the_window_and_were_reused_are_not_taken_for_the_tokens(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp writes over cells that no layer with a sliding window will read, unless the sequence goes back."""

    def differs() -> bool:
        source = random.Random(7)
        with loaded(models["gemma3"], kv_unified=True) as llama, loaded(models["gemma3"], sequences=1) as fresh:
            decode(llama, 1, tokens(source, 50))
            decode(llama, 0, tokens(source, 200))
            llama.rewind(1, 0)
            decode(llama, 2, tokens(source, 200))
            length = 2 * WINDOW
            assert llama.rewind(0, length) in (0, length)
            ids = [*llama.held[0], 7]
            return bool(np.abs(decode(llama, 0, [7]) - decode(fresh, 0, ids)).max() > ROUNDING)

    assert not differs()
    monkeypatch.setattr(WindowRollback, "reusable", CutRollback.reusable)
    assert differs(), "llama.cpp no longer reuses them: the check is needless"


def test_a_model_that_cannot_go_back_cheaply_says_so_once_and_still_goes_back(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with loaded(models["lfm2"], sequences=1) as fresh:
        monkeypatch.setattr(rollback.c, "llama_state_seq_set_data_ext", lambda *_: 0)
        assert not caplog.records
        with loaded(models["lfm2"]) as llama:
            (record,) = caplog.records
            assert record.levelno == logging.WARNING and str(models["lfm2"]) in record.message
            assert "a rejected draft may have the whole prompt read again" in record.message
            decode(llama, 0, [5, 6, 7, 8])
            llama.checkpoint(0)
            decode(llama, 0, [9])
            assert llama.rewind(0, 4) == 0
            decode(llama, 0, [5, 6])
            assert_goes_on(llama, 0, fresh)


@BOTH_LAYOUTS
@EVERY_KIND
def test_a_model_that_goes_back_cheaply_says_nothing(
    models: dict[str, Path], kind: str, unified: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with loaded(models[kind], kv_unified=unified):
        assert ("kv_unified" in caplog.text) == (kind == "gemma3" and unified)
        assert len(caplog.records) == int(kind == "gemma3" and unified)


def test_llama_cpps_own_rollback_restores_the_state_of_other_tokens_after_a_draft(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why copies are taken here: it keeps the states within the last batch, and each token of a draft is a batch."""
    defaults = c.llama_context_default_params()
    defaults.n_rs_seq = 16
    monkeypatch.setattr(c, "llama_context_default_params", lambda: defaults)
    with loaded(models["lfm2"], sequences=1) as llama, loaded(models["lfm2"], sequences=1) as fresh:
        decode(llama, 0, [5, 6, 7, 8])
        for token in (9, 10, 11):
            decode(llama, 0, [token])
        assert c.llama_memory_seq_rm(llama._context.memory, 0, 4, -1)
        del llama.held[0][4:]
        assert np.abs(decode(llama, 0, [7]) - decode(fresh, 0, [5, 6, 7, 8, 7])).max() > 1
