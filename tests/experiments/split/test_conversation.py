"""The cost of a conversation's turns on a split model, on a real edge and a fake cloud."""

from pathlib import Path

from experiments.split.conversation import conversation, table
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.split_edge import split_edge


async def test_turns_are_compared_with_first_ones(demo_split: Path) -> None:
    async with split_edge(FakeSplitCloud(), demo_split) as http:
        turns = await conversation(http, ("What is AI?", "Sort 31, 7, 64."), None)
    (first, _), (warm, cold) = turns
    assert (warm.tokens, first.cached, cold.cached) == (cold.tokens, 0, 0) and warm.cached > first.prompt
    assert warm.bytes_up < cold.bytes_up
    assert table(turns).row_count == len(turns)
