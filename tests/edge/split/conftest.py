"""A running split model, its fake cloud, and exits that take turns."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from edge.split.early_exit import AnswerPace, LatencyAwareEarlyExit
from edge.split.engine import EdgeInferenceEngine
from tests.support.split.fake_split_cloud import FakeSplitCloud
from tests.support.split.split_answers import engine_of

FIRST, SECOND, CLOUDS = range(3)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five tokens two are the first exit's, one the second's and two the cloud's, however well exits are trained.

    An exit whose threshold is above 1 has no turn.
    """

    def takes(self: LatencyAwareEarlyExit, exit: int, confidence: float, pace: AnswerPace) -> bool:
        turn = (CLOUDS, FIRST, CLOUDS, SECOND, FIRST)[pace.tokens % 5]
        return not self.disabled(exit) and exit == turn

    monkeypatch.setattr(LatencyAwareEarlyExit, "takes", takes)


@pytest.fixture
def cloud() -> FakeSplitCloud:
    return FakeSplitCloud()


@pytest_asyncio.fixture
async def engine(demo_split: Path, cloud: FakeSplitCloud) -> AsyncIterator[EdgeInferenceEngine]:
    async with engine_of(demo_split, cloud) as running:
        yield running
