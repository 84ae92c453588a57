"""The naive split on real engines: the whole model's answers, and all states of the context for each token."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from common import config
from common.http.client import HTTPClient
from common.http_server import HTTPServer
from common.types import Collaboration
from experiments.counters import edge as edge_counts
from experiments.harness.load import TimedAnswer, ask
from experiments.questions.text_metrics import score
from experiments.split import naive_edge
from experiments.split.formulas import SplitShape, every_token
from tests.support.split.split_parts import WholeModel, served

pytestmark = pytest.mark.asyncio(loop_scope="session")

SHAPE = SplitShape(hidden=256, layers=8, first=2)
QUESTIONS = "What is AI?", "Sort 31, 7, 64."
TOKENS = 12
FRAMES = 2 * 1024
"""The most bytes of frames in one token's session, without the states."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(demo_split: Path) -> AsyncIterator[HTTPClient]:
    async with served(demo_split) as (cloud, _):
        flags = [
            f"communication.cloud_endpoint=http://127.0.0.1:{cloud.port}", f"edge.split.manifest={demo_split}",
            "edge.split.deadline_ms=60000",
        ]  # fmt: skip
        server = HTTPServer(naive_edge.build_app(config.load(flags=flags, environment={})), "127.0.0.1", 0)
        await server.start()
        try:
            async with HTTPClient(f"http://127.0.0.1:{server.port}") as client:
                yield client
        finally:
            await server.stop()


async def asked(edge: HTTPClient, question: str) -> tuple[TimedAnswer, Collaboration]:
    answer = await ask(edge, 0, question, {"max_tokens": TOKENS, "mode": "split"})
    assert answer.collaboration is not None
    return answer, answer.collaboration


async def test_it_answers_as_the_whole_model_and_sends_the_whole_context_for_each_token(edge: HTTPClient) -> None:
    whole = WholeModel()
    for question in QUESTIONS:
        before = await edge_counts.counted(edge)
        answer, report = await asked(edge, question)
        ids = whole.tokens(f"<|user|>{question}<|assistant|>")
        assert answer.prompt_tokens == len(ids)
        for _ in range(answer.tokens):
            ids.append(whole.likeliest(ids)[0])
        assert score("exact_match", whole.text(ids[answer.prompt_tokens :]), answer.text) == 1
        assert report.tokens["cloud"] == report.cloud_calls == answer.tokens
        states = every_token(SHAPE, answer.prompt_tokens, answer.tokens)
        assert states <= report.bytes_up <= states + FRAMES * answer.tokens
        counted = await edge_counts.counted(edge) - before
        assert (counted.answers, counted.cloud) == (1, answer.tokens)
        assert 0 < report.cloud_latency_ms < answer.seconds * 1000


async def test_every_token_costs_more_than_the_one_before(edge: HTTPClient) -> None:
    sizes = []
    for tokens in (1, 2, 3):
        answer = await ask(edge, 0, QUESTIONS[0], {"max_tokens": tokens})
        assert answer.collaboration is not None and answer.tokens == tokens and answer.finish_reason == "length"
        sizes.append(answer.collaboration.bytes_up)
    one, two = (after - before for before, after in itertools.pairwise(sizes))
    assert 0 < sizes[0] < one < two
