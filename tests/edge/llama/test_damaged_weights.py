"""Weights that are no numbers: refused at the start, or an error of the answer that meets them and of no other."""

import asyncio
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest

from common.config_edge import EdgeModelConfig
from common.errors import EngineError, StartError
from common.types import GREEDY, Sampling
from edge.engine.engine import EdgeEngine
from tests.edge.llama import random_models

DAMAGED = 77
"""The token whose embedding is damaged."""


def damaged(path: Path, tensor: str, rows: slice) -> EdgeModelConfig:
    """A model with NaN in some rows of a tensor."""
    random_models.write(path, "qwen2")
    found = next(each for each in gguf.GGUFReader(path, "r+").tensors if each.name == tensor)
    found.data[rows] = np.nan
    return EdgeModelConfig(path=str(path), context_length=64, sequences=2)


async def test_a_model_that_computes_no_numbers_ends_the_start_in_one_line(tmp_path: Path) -> None:
    config = damaged(tmp_path / "damaged.gguf", "output_norm.weight", slice(None))
    with pytest.raises(StartError, match=r"damaged\.gguf: it computes no numbers \(NaN\): get the file again"):
        async with EdgeEngine(config):
            pass


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=5, top_p=0.9), Sampling(presence_penalty=1.0)],
)
async def test_only_the_answer_that_meets_damaged_weights_fails(tmp_path: Path, sampling: Sampling) -> None:
    config = damaged(tmp_path / "damaged.gguf", "token_embd.weight", slice(DAMAGED, DAMAGED + 1))
    async with EdgeEngine(config) as engine, engine.sequence() as hurt, engine.sequence() as sound:
        failed, drafted = await asyncio.gather(
            hurt.draft([5, DAMAGED], 4, sampling, 2), sound.draft([5, 6], 4, sampling, 2), return_exceptions=True
        )
        assert isinstance(failed, EngineError) and "no numbers" in failed.message
        assert not isinstance(drafted, BaseException) and len(drafted.token_ids) == 4
        with pytest.raises(EngineError, match="no numbers"):
            await hurt.score([5, DAMAGED, 6], 2)


@pytest.mark.parametrize("unified", [False, True])
async def test_nothing_of_damaged_weights_is_left_for_the_answers_after_it(tmp_path: Path, unified: bool) -> None:
    config = damaged(tmp_path / "damaged.gguf", "token_embd.weight", slice(DAMAGED, DAMAGED + 1))
    async with EdgeEngine(msgspec.structs.replace(config, kv_unified=unified)) as engine:
        async with engine.sequence() as first, engine.sequence() as second:
            sound = await first.draft([5, 6], 8, GREEDY)
            for hurt in (first, second):
                with pytest.raises(EngineError, match="no numbers"):
                    await hurt.draft([5, 6, 7, 8, DAMAGED], 8, GREEDY)
            assert [(await each.draft([5, 6], 8, GREEDY)).token_ids for each in (first, second)] == [
                sound.token_ids
            ] * 2
        async with engine.sequence() as later:  # may find what the others hold
            assert (await later.draft([5, 6], 8, GREEDY)).token_ids == sound.token_ids


async def test_work_beside_damaged_weights_goes_on_as_it_would_alone(tmp_path: Path) -> None:
    config = damaged(tmp_path / "damaged.gguf", "token_embd.weight", slice(DAMAGED, DAMAGED + 1))
    async with EdgeEngine(config) as engine, engine.sequence() as hurt, engine.sequence() as sound:

        async def meets_damage() -> None:
            for _ in range(3):
                with pytest.raises(EngineError, match="no numbers"):
                    await hurt.draft([5, 6, DAMAGED], 4, GREEDY)

        alone = await sound.draft([5, 6], 50, GREEDY)
        text = [5, 6, *alone.token_ids]
        scores = await sound.score(text)
        drawn, _ = await asyncio.gather(sound.draft([5, 6], 50, GREEDY), meets_damage())
        scored, _ = await asyncio.gather(sound.score(text), meets_damage())
        assert drawn.token_ids == alone.token_ids
        assert [each and each.logprob for each in scored] == [
            each and pytest.approx(each.logprob, abs=1e-3) for each in scores
        ]
