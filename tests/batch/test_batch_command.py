"""edgecloud batch against an edge in this process."""

import argparse
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from common import config
from common.batch.batch_input import BatchInput
from common.batch.batch_output import BatchOutput
from common.batch.http_target import HttpTarget
from common.batch.lines import BatchLine
from common.batch.runner import Attempt
from common.errors import FrameworkError
from common.http.client import HTTPClient
from edgecloud import batch
from tests.support.batches import ScriptedTarget, attempt, results, row, written
from tests.support.edge_in_process import edge_of

NOBODY = "http://127.0.0.1:1"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge() -> AsyncIterator[HTTPClient]:
    alone = "inference.mode=edge_only", "edge.limits.max_queue=1"
    async with edge_of(NOBODY, *alone) as made:
        yield made


async def run(edge: HTTPClient, rows: list[dict[str, object]], folder: Path, clients: int | None = None) -> Path:
    args = argparse.Namespace(input=folder / "in.jsonl", output=folder / "out.jsonl", clients=clients, resume=False)
    written(args.input, rows)
    settings = [f"communication.edge_endpoint={edge.base_url}"]
    await batch.batch(args, config.load(flags=settings, environment={}))
    return Path(args.output)


async def test_an_edge_is_kept_full_and_refuses_nothing(edge: HTTPClient) -> None:
    stats = (await edge.get("/stats", dict))["engine"]
    clients = await HttpTarget(edge).capacity()
    assert stats["sequences"] < clients <= 3 * stats["sequences"]  # more would be refused in the end


async def test_answers_keep_their_order_and_more_clients_than_the_edge_takes_wait(
    edge: HTTPClient, tmp_path: Path
) -> None:
    """This edge takes three requests at once, and is sent nine."""
    chat = {"messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 3}
    rows = [row(f"q{number}", max_tokens=1 + number % 7) for number in range(17)] + [chat]
    found = results(await run(edge, rows, tmp_path, clients=9))
    assert [one["custom_id"] for one in found] == [*(f"q{number}" for number in range(17)), "line-18"]
    assert [one["response"]["body"]["usage"]["completion_tokens"] for one in found[:17]] == [
        1 + number % 7 for number in range(17)
    ]
    assert all(one["error"] is None and one["response"]["request_id"] for one in found)
    async with aiohttp.ClientSession() as session, session.get(edge.base_url + "/metrics") as metrics:
        assert 'outcome="overloaded"' in await metrics.text()


async def test_a_long_wait_for_the_edge_is_told_once_with_its_end_and_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch, "LONG_SECONDS", 0.3)
    spent, asked = b'{"error":{"message":"this budget is spent: try again in 1 s"}}', Counter[str]()

    def answer(line: BatchLine) -> Attempt:
        asked[line.custom_id] += 1
        return attempt(429, spent, retry_after=0.5) if asked[line.custom_id] == 1 else attempt()

    given = BatchInput(written(tmp_path / "in.jsonl", [row("a"), row("b")]))
    with BatchOutput(tmp_path / "out.jsonl", given, resume=False) as output:
        await batch._run(given, output, ScriptedTarget(answer), 2)  # type: ignore[arg-type]
    shown = " ".join("".join(capsys.readouterr()).split())
    assert re.search(r"the edge takes no lines until [\d-]+ [\d:]+: this budget is spent", shown)
    assert "try again in" not in shown, "how long it is changes"
    assert shown.count("takes no lines") == 1


async def test_a_client_error_is_the_result_of_its_line_alone(edge: HTTPClient, tmp_path: Path) -> None:
    rows = [row("a"), row("b", temperature=-1), row("c", max_tokens=1)]
    with pytest.raises(FrameworkError, match=r"^1 of 3 lines failed"):
        await run(edge, rows, tmp_path)
    first, second, third = results(tmp_path / "out.jsonl")
    assert [one["response"]["status_code"] for one in (first, second, third)] == [200, 400, 200]
    assert second["response"]["body"]["error"]["param"] == "temperature"
    assert second["error"] is None
