"""Prompts that a cloud reads for longer than every deadline: it answers, and its engine is not restarted."""

import argparse
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.random_gguf import VOCABULARY, LlamaShape, write
from cli.demo import demo_servers
from common.http.client import HTTPClient
from common.types import VerifyRequest, VerifyResponse
from experiments.counters.scrape import page, totals
from models.random_model import random_model
from tests.conftest import Servers

CONTEXT = 4096
SMALL = LlamaShape("small", 4096, 64, 2, 4, 4, 128, CONTEXT)
DEADLINE = 0.8
"""Seconds: the cloud needs several times as long for the prompts here, in one step."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def slow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    """A cloud whose engine reads 4,000 tokens in one step of many seconds, and an edge; deadlines are far shorter."""
    gguf = Path(tmp_path_factory.mktemp("edge")) / "small.gguf"
    write(gguf, SMALL, VOCABULARY)
    with random_model(width=512, layers=12, context=CONTEXT) as folder:
        settings = [
            f"edge.model.path={gguf}",
            f"edge.model.context_length={CONTEXT}",
            f"cloud.model.path={folder}",
            f"cloud.model.context_length={CONTEXT}",
            "cloud.model.dtype=float32",
            f"cloud.engine_args.max_num_batched_tokens={CONTEXT}",
            "cloud.engine.hang_seconds=0.1",
            *(f"communication.http_client.{name}={DEADLINE}" for name in ("timeout", "first_byte_timeout")),
            f"communication.http_client.idle_timeout={5 * DEADLINE}",  # both servers share one core here
        ]
        args = argparse.Namespace(config=None, set=settings)
        async with (
            demo_servers(args, lambda _: None) as (edge_url, cloud_url),
            HTTPClient(edge_url) as edge,
            HTTPClient(cloud_url) as cloud,
        ):
            yield Servers(edge_url, cloud_url, edge, cloud, None)  # type: ignore[arg-type]


def prompt(seed: int, length: int) -> list[int]:
    """Tokens that no earlier prompt begins with, so that no cache holds them."""
    return random.Random(seed).choices(range(300, 4000), k=length)


WAYS: dict[str, dict[str, Any]] = {
    "rounds": {"use_confidence_check": False, "way": "rounds"},
    "continuous": {"use_confidence_check": False, "way": "continuous"},
    "gated": {},
    "stretches": {"use_draft_verify": False},
    "cloud_only": {"mode": "cloud_only"},
}


LENGTHS = [*((way, 2200) for way in WAYS), ("cloud_only", 3900)]
"""The rest of 3,900 tokens is read by `make test-long`."""


@pytest.mark.parametrize(
    ("way", "length"),
    [
        *LENGTHS,
        *(pytest.param(way, 3900, marks=pytest.mark.long) for way in WAYS if (way, 3900) not in LENGTHS),
    ],
)
async def test_a_long_prompt_is_answered_by_the_cloud_in_every_mode(slow: Servers, way: str, length: int) -> None:
    body = {
        "prompt": prompt(length + list(WAYS).index(way), length),
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": None,
    }
    answer: dict[str, Any] = await slow.edge.post("/v1/completions", body | WAYS[way], dict)
    report = answer["collaboration"]
    assert report["degraded"] is None
    assert sum(report["tokens"].values()) == 6
    assert sum(report["tokens"].values()) > report["tokens"]["edge"]
    assert await restarts(slow) == 0


async def test_a_long_prompt_is_answered_by_each_route_of_the_cloud(slow: Servers) -> None:
    verdict = await slow.cloud.post(
        "/verify", VerifyRequest(new_token_ids=prompt(1, 3900), draft_token_ids=[5, 6]), VerifyResponse, None, DEADLINE
    )
    assert verdict.token_ids
    answer: dict[str, Any] = await slow.cloud.post(
        "/v1/completions", {"prompt": prompt(2, 3900), "max_tokens": 3}, dict
    )
    assert answer["usage"]["prompt_tokens"] == 3900
    assert await restarts(slow) == 0


async def restarts(slow: Servers) -> float:
    """Engines that the cloud has lost so far."""
    return totals(await page(slow.cloud), {"lost": "edgecloud_engine_restarts_total"})["lost"]
