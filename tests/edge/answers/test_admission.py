"""A response is admitted as a whole: all its choices before its first byte, or none of them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from benchmarks.fake_cloud import FakeCloud
from common.config_edge import LimitsConfig
from common.errors import ContextLengthError, OverloadedError
from common.http.client import HTTPClient
from edge.engine.scheduler import BatchScheduler
from edge.engine.sequence_pool import SequencePool
from edge.text.chat_template import ChatTemplate
from tests.edge.answers.test_context_limits import ASK
from tests.support.edge_in_process import edge_of

CLIENTS = 12


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(fake: FakeCloud) -> AsyncIterator[HTTPClient]:
    async with edge_of(fake.url, "edge.limits.max_queue=2") as made:
        yield made


async def streamed(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, str]:
    async with session.post(url + "/v1/completions", json=body) as response:
        return response.status, await response.text()


@pytest.mark.parametrize("fields", [{"mode": "edge_only"}, {}, {"use_confidence_check": False}], ids=str)
async def test_no_choice_is_refused_after_the_first_byte(edge: HTTPClient, fields: dict[str, Any]) -> None:
    body = ASK | {"n": 3, "stream": True, "max_tokens": 8, "seed": 1} | fields
    async with aiohttp.ClientSession() as session:
        replies = await asyncio.gather(*(streamed(session, edge.base_url, body) for _ in range(CLIENTS)))
    assert {status for status, _ in replies} == {200, 429}
    for status, text in replies:
        assert status == 429 or ('"error"' not in text and text.rstrip().endswith("[DONE]")), text
    stats = (await edge.get("/stats", dict))["engine"]
    assert (stats["sequences_lent"], stats["prompt_tokens_now"]) == (0, 0)


async def test_a_response_whose_prompts_exceed_the_limit_together_takes_them_one_after_the_other(
    fake: FakeCloud,
) -> None:
    async with edge_of(fake.url, "edge.limits.max_tokens_total=20") as edge:
        body = ASK | {"prompt": [[5] * 15, [6] * 15], "mode": "edge_only", "max_tokens": 2}
        answer = await edge.post("/v1/completions", body, dict)
        assert answer["usage"]["prompt_tokens"] == 30


async def test_those_who_are_admitted_take_places_from_others_but_are_not_refused() -> None:
    pool = SequencePool(1, LimitsConfig(max_queue=1, max_tokens_total=100))
    with pool.admit(2, 60):
        for requests, tokens in ((1, 0), (0, 41)):
            with pytest.raises(OverloadedError), pool.admit(requests, tokens):
                pass
        for _ in range(2):
            async with pool.lend(30, lambda _: 0, admitted=True):
                pass
    async with pool.lend(100, lambda _: 0):
        assert pool.stats()["prompt_tokens_now"] == 100
    with pytest.raises(ContextLengthError, match="101 tokens"), pool.admit(1, 101):  # no time to wait would help
        pass


async def test_a_full_edge_refuses_a_prompt_before_it_reads_it(
    edge: HTTPClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Templates and tokenizers are waited for in turn: a refusal behind them would come late."""
    go_on, draw, write, rendered = threading.Event(), BatchScheduler._draw, ChatTemplate.write, list[str]()

    def slow(*arguments: Any) -> None:
        go_on.wait()
        draw(*arguments)

    async def noted(template: ChatTemplate, *arguments: Any) -> str:
        rendered.append(await write(template, *arguments))
        return rendered[-1]

    monkeypatch.setattr(BatchScheduler, "_draw", slow)
    monkeypatch.setattr(ChatTemplate, "write", noted)
    chat = {"messages": [{"role": "user", "content": "hello"}], "mode": "edge_only", "max_tokens": 2}
    async with aiohttp.ClientSession(edge.base_url) as session:
        asking = [asyncio.create_task(session.post("/v1/chat/completions", json=chat)) for _ in range(4)]
        while (await edge.get("/stats", dict))["engine"]["waiting"] < 2:
            await asyncio.sleep(0.01)
        async with session.post("/v1/chat/completions", json=chat) as refusal:
            status, read = refusal.status, len(rendered)
        go_on.set()
        assert (status, read) == (429, 4)
        assert [(await answer).status for answer in asking] == [200] * 4
