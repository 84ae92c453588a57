"""The context manager's ablation: the same tokens, and the whole context in a session of its own for each."""

from pathlib import Path

import pytest

from edge.split.engine import EdgeInferenceEngine
from experiments.split.forgetful_edge import ForgetfulTail
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.split_answers import NEVER, QUESTIONS, engine_of, run, tokens


async def test_every_token_of_the_cloud_brings_all_states_in_a_session_that_ends_with_it(
    demo_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, forgetting = FakeSplitCloud(), FakeSplitCloud()
    async with engine_of(demo_split, keeping) as engine:
        usual, _ = await run(engine, QUESTIONS[0], NEVER)
    monkeypatch.setattr(EdgeInferenceEngine, "tail_class", ForgetfulTail)
    async with engine_of(demo_split, forgetting) as engine:
        split, _ = await run(engine, QUESTIONS[0], NEVER)
        assert engine.segments.stats()["sequences_lent"] == 0
    assert tokens(split) == tokens(usual)
    begin = usual._prompt_tokens
    assert len(keeping.sessions) == 1 < len(forgetting.sessions)
    assert [session.positions for session in forgetting.sessions] == list(range(begin, begin + len(tokens(split))))
    assert all(session.closed for session in forgetting.sessions)
    assert split.answer.report.bytes_up > 2 * usual.answer.report.bytes_up
