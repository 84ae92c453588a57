"""The tail of the demo model in vLLM, over the real WebSocket: it answers as the whole model does, whatever is lost."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from cloud.split_service import SplitService
from common.config_keys import Secret, ServerConfig
from common.connection import HTTPClient
from common.http_server import HTTPServer
from common.split_client import SplitCloud
from common.split_frames import Kind
from common.types import GREEDY, Sampling
from tests.split_parts import PATIENCE, WholeModel, answer, cut_demo, served

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPTS = ("What is AI?", "Explain quantum computing", "What is the capital of France?", "Sort these: 9 4 7 1")
KEYS = ("one", "two")


@pytest.fixture(scope="session")
def whole() -> WholeModel:
    return WholeModel()


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_demo(tmp_path_factory.mktemp("tail"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tail(pieces: Path) -> AsyncIterator[tuple[HTTPServer, SplitService]]:
    async with served(pieces, ServerConfig(api_keys=[Secret(key) for key in KEYS])) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def cloud(tail: tuple[HTTPServer, SplitService]) -> AsyncIterator[SplitCloud]:
    async with HTTPClient(f"http://127.0.0.1:{tail[0].port}", api_key=Secret("one")) as http, SplitCloud(http) as cloud:
        yield cloud


async def test_it_answers_as_the_whole_model(
    cloud: SplitCloud, tail: tuple[HTTPServer, SplitService], whole: WholeModel
) -> None:
    manifest = tail[1].manifest
    for prompt in PROMPTS:
        ids = whole.tokens(prompt)
        async with cloud.session(manifest.fingerprint, Kind.FP32) as session:
            drawn = await answer(whole, session, ids, 8)
            for number, token in enumerate(drawn):
                known, logprob = whole.likeliest(ids)
                assert token.token_id == known
                assert token.logprob == pytest.approx(logprob, abs=1e-3)
                assert token.confidence == pytest.approx(np.exp(token.logprob))
                assert (token.computed, token.cached) == ((len(ids), 0) if not number else (1, len(ids) - 1))
                ids.append(known)
