"""Many answers over a split model's segments: none changes another, waits for a long one, or outlives its client."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from common.config_edge import EdgeModelConfig, LimitsConfig
from common.errors import ConfigError, ContextLengthError, EngineError, OverloadedError
from common.protocol.split_manifest import NAME, SplitManifest, read_manifest
from common.types import GREEDY, Sampling
from edge.llama.segment import CHUNK
from edge.split.jobs import ExitPrediction, ExitRequest, SegmentJob
from edge.split.scheduler import LAST_STEP_INPUTS, share_out
from edge.split.segments import Segments, SegmentSequence

QUESTIONS = (
    "What is AI?",
    "What is the capital of France?",
    "Explain quantum computing",
    "Sort 31, 7, 64.",
    "What is 12 + 30?",
    "What port does SSH use?",
    "Reverse: cloud edge model layer",
    "What is the day after 30 April?",
)
LENGTH = 16
THRESHOLD = 0.97
"""The first exit is confident of some tokens of each of these answers, and not of others."""
HOT = Sampling(temperature=0.9, top_p=0.95, top_k=40, seed=11)


def segments_of(folder: Path, **changes: Any) -> Segments:
    limits = changes.pop("limits", None)
    options: dict[str, Any] = {"context_length": 512, "threads": 1, "sequences": 8, "kv_type": "f32"}
    return Segments(read_manifest(folder), folder, EdgeModelConfig(**options | changes), limits)


@pytest_asyncio.fixture
async def segments(demo_split: Path) -> AsyncIterator[Segments]:
    async with segments_of(demo_split) as running:
        yield running


def ask(segments: Segments, question: str) -> list[int]:
    return segments.tokenize(f"<|user|>{question}<|assistant|>", parse_special=True)


def confident(confidence: float) -> bool:
    return confidence >= THRESHOLD


def always(_: float) -> bool:
    return True


def never(_: float) -> bool:
    return False


async def drawn(
    sequence: SegmentSequence, token_ids: list[int], limit: int = LENGTH, confident: Callable[[float], bool] = always
) -> list[ExitPrediction]:
    async with aclosing(sequence.draw(token_ids, limit, confident)) as parts:
        return [prediction async for part in parts for prediction in part]


async def answer(segments: Segments, question: str, sampling: Sampling = GREEDY) -> list[int]:
    """By the first exit where it is confident, else by the second."""
    ids = ask(segments, question)
    begin = len(ids)
    async with segments.sequence(begin, sampling) as sequence:
        while len(ids) < begin + LENGTH and ids[-1] not in segments.end_tokens:
            predictions = await drawn(sequence, ids[sequence.held[0] :], begin + LENGTH - len(ids), confident)
            ids += [prediction.token_id for prediction in predictions if prediction.confident]
            if not predictions[-1].confident:
                ids.append((await sequence.catch_up(1, always)).token_id)
    return ids[begin:]


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "seeded"])
async def test_an_answer_alone_is_the_answer_among_eight(segments: Segments, sampling: Sampling) -> None:
    alone = [await answer(segments, question, sampling) for question in QUESTIONS]
    before = segments.work
    together = await asyncio.gather(*(answer(segments, question, sampling) for question in QUESTIONS))
    assert together == alone
    (steps, rows), _ = (np.subtract(now, then) for now, then in zip(segments.work, before, strict=True))
    assert steps < rows / 2  # they were computed together


async def test_pending_positions_are_caught_up_in_one_step_and_change_no_prediction(segments: Segments) -> None:
    ids = ask(segments, QUESTIONS[0])
    async with segments.sequence(len(ids)) as late, segments.sequence(len(ids)) as prompt:
        predictions = await drawn(late, ids, 6)
        assert late.pending(1) == len(ids) + 5 == late.held[0]
        (steps, _) = segments.work[1]
        prediction = await late.catch_up(1, never)
        assert (late.pending(1), segments.work[1][0]) == (0, steps + 1)
        for token in [[]] + [[prediction.token_id] for prediction in predictions[:-1]]:  # each position at once
            await drawn(prompt, token or ids, 1)
            prompted = await prompt.catch_up(1, never)
        assert prediction.token_id == prompted.token_id
        assert prediction.confidence == pytest.approx(prompted.confidence, abs=1e-4)
        np.testing.assert_allclose(late.states, prompt.states, atol=1e-4)


async def test_an_exit_that_is_not_computed_predicts_nothing_and_leaves_the_same_states(segments: Segments) -> None:
    ids = ask(segments, QUESTIONS[1])
    async with segments.sequence(len(ids)) as without, segments.sequence(len(ids)) as computed:
        assert await drawn(without, ids, limit=0) == []
        assert len(await drawn(computed, ids, 1, never)) == 1
        np.testing.assert_allclose(without.states, computed.states, atol=1e-4)


async def test_a_run_ends_with_the_first_token_below_the_threshold(segments: Segments) -> None:
    ids = ask(segments, "Sort 31, 7, 64.")
    async with segments.sequence(len(ids)) as sequence:
        predictions = await drawn(sequence, ids, 64, confident)
    assert [prediction.confident for prediction in predictions] == [True] * (len(predictions) - 1) + [False]
    assert all(prediction.confident == (prediction.confidence >= THRESHOLD) for prediction in predictions)
    assert sequence.held[0] == len(ids) + len(predictions) - 1


async def test_a_temperature_of_an_exit_changes_its_confidence_and_not_its_token(demo_split: Path) -> None:
    manifest = read_manifest(demo_split)
    found = []
    for temperature in (1.0, 3.0):
        warm = msgspec.structs.replace(manifest, temperatures=[temperature, 1.0])
        running = Segments(warm, demo_split, EdgeModelConfig(sequences=1))
        async with running as segments, segments.sequence(1) as sequence:
            (prediction,) = await drawn(sequence, ask(segments, QUESTIONS[0]), 1)
            found.append(prediction)
    assert found[0].token_id == found[1].token_id
    assert found[0].confidence > found[1].confidence > 1 / manifest.vocab_size


async def test_nobody_waits_for_a_long_prompt(segments: Segments) -> None:
    """With two chunks of it still to be read, others answer."""
    order = []

    async def long() -> None:
        async with segments.sequence(500) as sequence:
            await drawn(sequence, list(range(1, 501)), 1, never)
            order.append("long")

    async def short() -> None:
        ids = ask(segments, QUESTIONS[1])
        async with segments.sequence(len(ids)) as sequence:
            await drawn(sequence, ids, 2, always)
            order.append("short")

    await asyncio.gather(long(), short())
    assert order == ["short", "long"]


async def test_a_client_that_leaves_stops_its_work_and_frees_its_sequence(demo_split: Path) -> None:
    async with segments_of(demo_split, sequences=1) as segments:
        ids = ask(segments, QUESTIONS[2])

        async def endless() -> None:
            async with segments.sequence(len(ids)) as sequence:
                await drawn(sequence, ids, 400)

        task = asyncio.create_task(endless())
        while segments.work[0][0] < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        fresh = await answer(segments, QUESTIONS[0])
        steps = segments.work[0][0]
        await asyncio.sleep(0.05)
        assert segments.work[0][0] == steps  # a client that left causes no more work
        assert fresh == await answer(segments, QUESTIONS[0])
        assert segments.stats()["sequences_lent"] == 0


async def test_a_sequence_is_lent_empty(segments: Segments) -> None:
    """Without being forgotten in every segment, what one answer left would be before the next one's tokens."""
    first = await answer(segments, QUESTIONS[3])
    assert [await answer(segments, QUESTIONS[3]) for _ in range(9)] == [first] * 9


async def test_more_answers_than_sequences_wait_their_turn_and_too_many_are_refused(demo_split: Path) -> None:
    async with segments_of(demo_split, sequences=2, limits=LimitsConfig(max_queue=1)) as segments:
        assert len(set(map(tuple, await asyncio.gather(*(answer(segments, QUESTIONS[0]) for _ in range(3)))))) == 1
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(segments.sequence(1))
            waiting = asyncio.create_task(answer(segments, QUESTIONS[0]))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError):
                await answer(segments, QUESTIONS[0])
        assert await waiting
        with pytest.raises(ContextLengthError):
            await stack.enter_async_context(segments.sequence(513))


async def test_a_step_that_fails_fails_those_in_it_and_nobody_else(segments: Segments) -> None:
    ids = ask(segments, QUESTIONS[0])
    async with segments.sequence(len(ids)) as broken, segments.sequence(len(ids)) as well:
        with pytest.raises(EngineError, match="could not decode"):
            await drawn(broken, [10**6], 1)
        assert len(await drawn(well, ids, 3)) == 3


async def test_closing_fails_what_waits_and_ends_the_thread(demo_split: Path) -> None:
    segments = segments_of(demo_split)
    await segments.__aenter__()
    ids = ask(segments, QUESTIONS[2])
    async with segments.sequence(len(ids)) as sequence:
        task = asyncio.create_task(drawn(sequence, ids, 400))
        while segments.work[0][0] < 2:
            await asyncio.sleep(0.001)
        await segments.__aexit__()
        with pytest.raises(EngineError, match="stopped"):
            await task
    assert not segments.alive
    assert not any(thread.name == "edge-segments" for thread in threading.enumerate())


def changed(folder: Path, to: Path, **changes: Any) -> SplitManifest:
    """The pieces of `folder` in a new folder, with another manifest."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("tail*"))
    manifest = msgspec.structs.replace(read_manifest(folder), **changes)
    (to / NAME).write_bytes(msgspec.json.encode(manifest))
    return manifest


async def test_segments_that_are_not_the_manifests_are_refused_at_start(demo_split: Path, tmp_path: Path) -> None:
    manifest = changed(demo_split, tmp_path / "swapped")
    one, two = (tmp_path / "swapped" / part.file for part in manifest.segments)
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    with pytest.raises(ConfigError, match=r"segment-1\.gguf: not what its manifest names, but of another model"):
        await segments_of(tmp_path / "swapped").__aenter__()
    two.unlink()
    shutil.copy(demo_split / manifest.segments[0].file, one)
    with pytest.raises(ConfigError, match=r"segment-2\.gguf: No such file"):
        await segments_of(tmp_path / "swapped").__aenter__()
    assert not any(thread.name == "edge-segments" for thread in threading.enumerate())


async def test_a_manifest_of_another_shape_is_refused_at_start(demo_split: Path, tmp_path: Path) -> None:
    changed(demo_split, tmp_path / "wide", hidden=512)
    with pytest.raises(ConfigError, match=r"has 2 layers, 256 numbers per state.*its manifest says 2 layers, 512"):
        await segments_of(tmp_path / "wide").__aenter__()


def job(length: int, limit: int = 1) -> SegmentJob:
    return SegmentJob(0, 0, 0, [1] * length, None, ExitRequest(limit, GREEDY, always), [1] * length)


async def test_a_step_holds_all_that_is_small_and_shares_of_what_is_not() -> None:
    def counts(*jobs: SegmentJob) -> list[int]:
        return [count for _, count in share_out(jobs, LAST_STEP_INPUTS)]

    assert counts(job(1), job(5), job(LAST_STEP_INPUTS)) == [1, 5, LAST_STEP_INPUTS]
    assert counts(job(LAST_STEP_INPUTS + 1)) == [LAST_STEP_INPUTS]  # one is left, after which the exit is computed
    assert counts(job(LAST_STEP_INPUTS + 1, limit=0)) == [LAST_STEP_INPUTS + 1]
    assert counts(job(10**4), job(10**4)) == [CHUNK // 2, CHUNK // 2]
    assert counts(job(40), job(10**4)) == [39, CHUNK - 39]
    assert counts(*[job(10**4) for _ in range(CHUNK + 9)]) == [1] * CHUNK
    full = counts(*[job(LAST_STEP_INPUTS) for _ in range(20)])
    assert full == [LAST_STEP_INPUTS] * (CHUNK // LAST_STEP_INPUTS)  # the others wait whole
