"""`/v1/files` and `/v1/batches` with the unmodified openai package, on an edge in this process."""

import asyncio
import errno
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from common.batch.lines import BatchLine
from common.config_values import Secret
from common.errors import RateLimitError
from common.fair_queue import FairQueue
from common.http.auth import tenant_name
from edge.batches import edge_target, jobs, routes
from edge.batches.edge_target import EdgeTarget
from edge.engine.sequence_pool import SequencePool
from edge.tenants.quotas import Quotas
from tests.support.batches import ROUTE, row
from tests.support.edge_in_process import edge_of

NOBODY = "http://127.0.0.1:1"
KEYS = "ann", "bob"
LIMIT = 400_000


@asynccontextmanager
async def clients(folder: Path) -> AsyncIterator[list[openai.AsyncOpenAI]]:
    """The clients of two tenants of an edge with batches."""
    settings = f"edge.batches.directory={folder}", f"edge.batches.disk_bytes={LIMIT}", "edge.server.api_keys=[ann,bob]"
    async with edge_of(NOBODY, "inference.mode=edge_only", *settings) as edge:
        made = [openai.AsyncOpenAI(base_url=f"{edge.base_url}/v1", api_key=key, max_retries=0) for key in KEYS]
        try:
            yield made
        finally:
            for one in made:
                await one.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[openai.AsyncOpenAI]]:
    async with clients(tmp_path_factory.mktemp("batches")) as made:
        yield made


async def uploaded(client: openai.AsyncOpenAI, rows: Sequence[dict[str, Any]]) -> str:
    data = "".join(json.dumps(one) + "\n" for one in rows).encode()
    return (await client.files.create(file=("in.jsonl", data), purpose="batch")).id


async def started(client: openai.AsyncOpenAI, rows: Sequence[dict[str, Any]]) -> str:
    made = await client.batches.create(
        input_file_id=await uploaded(client, rows), endpoint=ROUTE, completion_window="24h", metadata={"a": "b"}
    )
    return made.id


async def ended(client: openai.AsyncOpenAI, id: str) -> Any:
    async with asyncio.timeout(60):
        while (job := await client.batches.retrieve(id)).status not in ("completed", "failed", "cancelled"):
            await asyncio.sleep(0.05)
    return job


async def results(client: openai.AsyncOpenAI, id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await client.files.content(id)).text.splitlines()]


async def test_a_batch_has_its_answers_and_errors_in_two_files(both: list[openai.AsyncOpenAI]) -> None:
    client = both[0]
    rows = [row(f"q{number}", max_tokens=1 + number % 3) for number in range(8)]
    rows.insert(3, row("wrong", temperature=-1))
    job = await ended(client, await started(client, rows))
    assert (job.status, job.metadata, job.errors) == ("completed", {"a": "b"}, None)
    assert (job.request_counts.total, job.request_counts.completed, job.request_counts.failed) == (9, 8, 1)
    answers = await results(client, job.output_file_id)
    assert [one["custom_id"] for one in answers] == [f"q{number}" for number in range(8)]
    assert [one["response"]["body"]["usage"]["completion_tokens"] for one in answers] == [1, 2, 3, 1, 2, 3, 1, 2]
    (error,) = await results(client, job.error_file_id)
    assert error["custom_id"] == "wrong" and error["response"]["status_code"] == 400
    assert (await client.batches.list()).data[0].id == job.id
    await client.files.delete(job.output_file_id)
    with pytest.raises(openai.NotFoundError):
        await client.files.content(job.output_file_id)


async def test_lines_count_against_the_limits_of_their_key(
    both: list[openai.AsyncOpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, request = list[str](), Quotas.request

    def noted(quotas: Quotas, tenant: str) -> Any:
        counted.append(tenant)
        return request(quotas, tenant)

    monkeypatch.setattr(Quotas, "request", noted)
    await ended(both[0], await started(both[0], [row(f"q{number}", max_tokens=1) for number in range(3)]))
    assert counted == [tenant_name(Secret(KEYS[0]))] * 3


async def test_each_tenant_finds_only_its_own(both: list[openai.AsyncOpenAI]) -> None:
    ann, bob = both
    file = await uploaded(ann, [row("a")])
    job = await ended(ann, await started(ann, [row("a")]))
    for foreign in (
        bob.files.retrieve(file),
        bob.files.content(file),
        bob.files.delete(file),
        bob.batches.retrieve(job.id),
        bob.batches.cancel(job.id),
        bob.batches.create(input_file_id=file, endpoint=ROUTE, completion_window="24h"),
        bob.files.retrieve("..%2F..%2Flock"),
    ):
        with pytest.raises(openai.NotFoundError):
            await foreign
    assert (await bob.files.list()).data == [] and (await bob.batches.list()).data == []


async def test_a_bad_input_fails_the_batch_and_names_no_path(both: list[openai.AsyncOpenAI]) -> None:
    job = await ended(both[0], await started(both[0], [row("a"), row("b", url="/v1/embeddings"), row("a")]))
    assert job.status == "failed"
    (error,) = job.errors.data
    assert error.message == f"the input: line 2: url: must be {ROUTE}, as the batch's endpoint"


async def test_what_does_not_fit_is_refused_and_takes_no_room(both: list[openai.AsyncOpenAI]) -> None:
    client = both[1]
    with pytest.raises(openai.BadRequestError, match="does not fit the room"):
        await uploaded(client, [row("a", prompt="a" * LIMIT)])
    with pytest.raises(openai.BadRequestError, match='must be "batch"'):
        await client.files.create(file=("in.jsonl", b"{}"), purpose="assistants")
    assert (await client.files.list()).data == []
    kept = [await uploaded(client, [row("a", prompt="a" * (LIMIT - 10_000))])]
    kept.append(await uploaded(client, []))  # it and what is kept about it count as 4 KiB each
    with pytest.raises(openai.BadRequestError, match="delete some"):
        await uploaded(client, [])
    for file in kept:
        await client.files.delete(file)


FILE = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n'


@pytest.mark.parametrize(
    ("form", "param"),
    [
        (b"--X\r\nno colon\r\n\r\n{}\r\n--X--\r\n", None),
        (b"--X\r\nA: " + b"a" * 20_000 + b"\r\n\r\n{}\r\n--X--\r\n", None),
        (b'--X\r\nContent-Disposition: form-data; name="a\xff"\r\n\r\n' + b"a" * 3000 + b"\r\n--X--\r\n", "a?"),
        (FILE + FILE + b"--X--\r\n", "file"),
    ],
)
async def test_a_form_that_is_none_is_the_callers_fault(
    form: bytes, param: str | None, both: list[openai.AsyncOpenAI]
) -> None:
    headers = {"Authorization": f"Bearer {KEYS[1]}", "Content-Type": "multipart/form-data; boundary=X"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{both[1].base_url}files", data=form) as reply,
    ):
        assert reply.status == 400 and (await reply.json())["error"]["param"] == param


async def test_a_name_that_is_no_unicode_is_kept_without_what_is_wrong(both: list[openai.AsyncOpenAI]) -> None:
    form = b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n' + FILE.replace(b'"a"', b'"a\xff"')
    headers = {"Authorization": f"Bearer {KEYS[1]}", "Content-Type": "multipart/form-data; boundary=X"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{both[1].base_url}files", data=form + b"--X--\r\n") as reply,
    ):
        made = await reply.json()
    assert made["filename"] == "a?"
    await both[1].files.delete(made["id"])


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "1" * 5000])
async def test_a_page_has_from_1_to_100_batches(limit: str, both: list[openai.AsyncOpenAI]) -> None:
    with pytest.raises(openai.BadRequestError, match="must be from 1 to 100"):
        await both[0].batches.list(extra_query={"limit": limit})


@pytest.mark.parametrize(
    "field",
    [
        {"metadata": {str(number): "" for number in range(17)}},
        {"metadata": {"a" * 65: ""}},
        {"metadata": {"a": "b" * 513}},
        {"completion_window": "1" * 17},
    ],
)
async def test_what_is_kept_with_a_batch_is_bounded(field: dict[str, Any], both: list[openai.AsyncOpenAI]) -> None:
    with pytest.raises(openai.BadRequestError, match=r"Expected .* of length <= "):
        await both[0].post("/batches", body={"input_file_id": "", "endpoint": ROUTE} | field, cast_to=object)


async def test_the_input_of_a_waiting_batch_is_refused_to_be_deleted(
    both: list[openai.AsyncOpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_target, "whole", slow_after(0))
    id = await started(both[0], [row("a")])
    file = (await both[0].batches.retrieve(id)).input_file_id
    with pytest.raises(openai.ConflictError, match="cancel it first"):
        await both[0].files.delete(file)
    await both[0].batches.cancel(id)
    await ended(both[0], id)


async def test_uploads_at_once_share_the_room(both: list[openai.AsyncOpenAI], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "RECHECK_BYTES", 1)
    large = [row("a", prompt="a" * (LIMIT * 5 // 8))]
    came = await asyncio.gather(*(uploaded(both[1], large) for _ in range(2)), return_exceptions=True)
    kept = [file.id for file in (await both[1].files.list()).data]
    assert len(kept) <= 1 and [one for one in came if isinstance(one, str)] == kept
    for file in kept:
        await both[1].files.delete(file)


async def test_results_that_do_not_fit_fail_the_batch_and_those_that_do_are_kept(
    both: list[openai.AsyncOpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def whole(*_: object) -> dict[str, Any]:
        return {"text": "a" * (LIMIT // 4)}

    monkeypatch.setattr(edge_target, "whole", whole)
    job = await ended(both[1], await started(both[1], [row(f"q{number}") for number in range(50)]))
    assert job.status == "failed"
    assert job.errors.data[0].message == "the results do not fit the room that is left for your files"
    assert 3 <= len(await results(both[1], job.output_file_id)) <= 4
    await both[1].files.delete(job.output_file_id)


async def test_a_cancelled_batch_keeps_what_is_finished(
    both: list[openai.AsyncOpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_target, "whole", slow_after(3))
    running = await started(both[0], [row(f"q{number}") for number in range(9)])
    waiting = await started(both[0], [row("never")])
    while (await both[0].batches.retrieve(running)).request_counts.completed < 3:
        await asyncio.sleep(0.02)
    for id, finished in ((waiting, 0), (running, 3)):
        assert (await both[0].batches.cancel(id)).status == "cancelling"
        if id == running:
            job = await ended(both[0], id)
            assert (job.status, job.request_counts.completed) == ("cancelled", finished)
            assert len(await results(both[0], job.output_file_id)) == finished
    job = await ended(both[0], waiting)
    assert (job.status, job.output_file_id) == ("cancelled", None)
    with pytest.raises(openai.BadRequestError, match="cancelled already"):
        await both[0].batches.cancel(waiting)


async def test_a_batch_goes_on_when_the_edge_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(f"q{number}") for number in range(7)]
    asked: list[str] = []
    with monkeypatch.context() as first:
        first.setattr(edge_target, "whole", slow_after(4, asked))
        async with clients(tmp_path) as (client, _):
            id = await started(client, rows)
            while (await client.batches.retrieve(id)).request_counts.completed < 4:
                await asyncio.sleep(0.02)
    monkeypatch.setattr(edge_target, "whole", slow_after(99, asked))
    async with clients(tmp_path) as (client, _):
        job = await ended(client, id)
        assert (job.status, job.request_counts.completed) == ("completed", 7)
        found = [one["custom_id"] for one in await results(client, job.output_file_id)]
    assert found == [f"q{number}" for number in range(7)]
    assert len(asked) == 7


async def test_a_key_that_has_to_wait_for_its_limits_keeps_nobodys_jobs_waiting_and_its_own_say_so(
    both: list[openai.AsyncOpenAI], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge.batches.jobs")
    wait = {tenant_name(Secret(KEYS[0])): 40_000}
    tried = list[str]()

    async def whole(path: str, data: bytes, context: object, kept: object, tenant: str) -> dict[str, Any]:
        tried.append(tenant)
        if seconds := wait.get(tenant):
            raise RateLimitError(f"its day is used up: try again in {seconds} s", retry_after=seconds)
        return {}

    monkeypatch.setattr(edge_target, "whole", whole)
    ann, bob = both
    first, second, third = [await started(client, [row("q")]) for client in (ann, ann, bob)]
    assert (await ended(bob, third)).status == "completed"
    assert (
        len(tried) == 3 and [(await ann.batches.retrieve(id)).status for id in (first, second)] == ["in_progress"] * 2
    )
    for id in (first, second):
        waiting: Any = (await ann.batches.retrieve(id)).to_dict()
        assert waiting["waits_because"] == "its day is used up"
        assert 39_000 < waiting["waits_until"] - time.time() < 40_001
    assert f"batch {first} waits for 40000 s: its day is used up" in caplog.messages
    assert (await ann.batches.cancel(first)).status == "cancelling"
    assert (await ended(ann, first)).status == "cancelled"
    assert (await ann.batches.retrieve(first)).to_dict()["waits_until"] is None
    await ann.batches.cancel(second)
    wait = dict.fromkeys(wait, 1)
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", 0.5)
    last = await started(ann, [row("q")])
    while len(tried) < 4:
        await asyncio.sleep(0.02)
    wait.clear()
    job = await ended(ann, last)
    assert (job.status, job.request_counts.completed) == ("completed", 1)


async def test_lines_wait_behind_people_and_leave_a_sequence_free_whatever_they_ask_for(
    both: list[openai.AsyncOpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    priorities, lent = set[int](), set[int]()
    add, lend = FairQueue.add, SequencePool.lend

    def noted(queue: FairQueue[Any], item: Any, tenant: str, priority: int) -> None:
        priorities.add(priority)
        add(queue, item, tenant, priority)

    @asynccontextmanager
    async def counted(pool: SequencePool, *given: Any, **named: Any) -> AsyncIterator[int]:
        async with lend(pool, *given, **named) as sequence:
            lent.add(pool.stats()["sequences_lent"])
            yield sequence

    monkeypatch.setattr(FairQueue, "add", noted)
    monkeypatch.setattr(SequencePool, "lend", counted)
    rows = [row(f"q{number}", n=8, priority=-5, temperature=1) for number in range(2)]
    job = await ended(both[0], await started(both[0], [*rows, row("plain")]))
    assert job.request_counts.completed == 3
    assert (priorities, lent) == ({1}, {1}), "of two sequences"


def slow_after(lines: int, asked: list[str] | None = None) -> Any:
    """Answers `lines` lines at once, and no others; `asked` gets the bodies of those that are answered."""
    left = lines

    async def whole(path: str, data: bytes, *rest: object) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            await asyncio.Event().wait()
        (asked if asked is not None else []).append(path)
        return {"path": path}

    return whole


def test_the_lines_of_a_batch_leave_a_sequence_free() -> None:
    class Context:
        class engine:
            stats = staticmethod(lambda: {"sequences": 4})

    assert EdgeTarget(Context(), None, "").capacity == 3  # type: ignore[arg-type]


async def test_a_line_begins_as_soon_as_a_sequence_is_idle_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    idle, asked = asyncio.Event(), list[str]()
    monkeypatch.setattr(edge_target, "whole", slow_after(1, asked))
    context: Any = SimpleNamespace(
        engine=SimpleNamespace(stats=dict, until_idle=idle.wait),
        config=SimpleNamespace(edge=SimpleNamespace(private_keys=())),
        quotas=SimpleNamespace(request=lambda _: nullcontext()),
    )
    target = EdgeTarget(context, None, "")  # type: ignore[arg-type]
    asking = asyncio.create_task(target.ask(BatchLine(0, "a", ROUTE, b"{}")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not asked
    idle.set()
    assert (await asking).reply.status_code == 200
    assert asked == [ROUTE]


async def test_a_full_disk_is_named_and_keeps_nothing_half(
    both: list[openai.AsyncOpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = both[0]
    file = await uploaded(ann, [row("one")])

    async def kept() -> list[set[str]]:
        return [{one.id for one in (await each.list()).data} for each in (ann.files, ann.batches)]

    before = await kept()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("edge.batches.file_store.os.fsync", full)
        for wanted in (
            ann.batches.create(input_file_id=file, endpoint=ROUTE, completion_window="24h"),
            uploaded(ann, [row("two")]),
        ):
            with pytest.raises(openai.APIStatusError) as refused:
                await wanted
            assert (refused.value.status_code, refused.value.code) == (507, "storage_failed")
    assert await kept() == before
