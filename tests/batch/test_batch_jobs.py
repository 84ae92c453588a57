"""Jobs of batches lose no answer, end or go on whatever fails, and stay as private as they were made."""

import asyncio
import errno
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common import config
from common.batch.batch_input import BatchInput
from common.batch.batch_output import BatchOutput
from common.batch.lines import BatchLine
from common.config_values import Secret
from common.errors import ConfigError, FileInUse, NotFoundError, RequestError
from common.http.auth import tenant_name
from edge.batches import edge_target, file_store, finalizing
from edge.batches import jobs as batch_jobs
from edge.batches.file_store import BLOCK, FileStore, new_id
from edge.batches.jobs import BatchJobs
from edge.batches.objects import JobObject, NewJob
from edge.privacy.private_requests import KEY, kept_by_caller
from tests.support.batches import ROUTE, results, row
from tests.support.edge_in_process import edge_of

BOB = tenant_name(Secret("bob"))
KEYS = "edge.server.api_keys=[ann, bob]"


@asynccontextmanager
async def jobs_of(folder: Path, *settings: str) -> AsyncIterator[BatchJobs]:
    """The jobs of an edge of four sequences, without the edge."""
    loaded = config.load(flags=[f"edge.batches.directory={folder}", *settings], environment={})
    context: Any = SimpleNamespace(
        config=loaded,
        engine=SimpleNamespace(stats=lambda: {"sequences": 4}, until_idle=lambda: asyncio.sleep(0)),
        quotas=SimpleNamespace(request=lambda _: nullcontext()),
    )
    kept: Any = None
    with FileStore(folder, loaded.edge.batches.disk_bytes) as store:
        async with BatchJobs(store, context, kept) as made:
            yield made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """By which header each line that was answered was private; one with the prompt "never" is not answered."""
    made = list[str]()

    async def whole(_: str, body: bytes, *rest: object) -> dict[str, str]:
        if json.loads(body)["prompt"] == "never":
            await asyncio.Event().wait()
        made.append(kept_by_caller())
        return {"text": "x"}

    monkeypatch.setattr(edge_target, "whole", whole)
    return made


def uploaded(jobs: BatchJobs, tenant: str = "", *rows: dict[str, Any]) -> str:
    id, file = jobs.store.begin(tenant)
    with file:
        file.write("".join(json.dumps(one) + "\n" for one in rows or [row("a"), row("b")]).encode())
    return jobs.store.keep(tenant, id, "in.jsonl").id


def started(jobs: BatchJobs, file: str, tenant: str = "", private: bool = False) -> str:
    return jobs.create(tenant, NewJob(input_file_id=file, endpoint=ROUTE), private).id


async def until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not done():
            await asyncio.sleep(0.01)


async def ended(jobs: BatchJobs, id: str, tenant: str = "") -> JobObject:
    await until(lambda: jobs.job(tenant, id).status in ("completed", "failed", "cancelled"))
    return jobs.job(tenant, id)


async def stopped_after(folder: Path, finished: int, tenant: str = "", private: bool = False) -> str:
    """A job of an edge that was stopped when so many lines were finished, and one more not."""
    async with jobs_of(folder, KEYS) if tenant else jobs_of(folder) as jobs:
        rows = [*(row(f"q{number}") for number in range(finished)), row("last", prompt="never")]
        id = started(jobs, uploaded(jobs, tenant, *rows), tenant, private)
        await until(lambda: jobs.job(tenant, id).request_counts.completed == finished)
    return id


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*"))


async def test_a_folder_that_is_a_file_ends_the_start_before_a_model_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    folder.write_text("")
    with pytest.raises(ConfigError, match=r"edge\.batches\.directory.*File exists"):
        async with edge_of("http://127.0.0.1:1", f"edge.batches.directory={folder}", "edge.model.path=none.gguf"):
            pass


async def test_a_private_batch_stays_private_when_its_key_is_no_more(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    id = await stopped_after(tmp_path, 2, BOB, private=True)
    asked.clear()

    async def whole(*_: object) -> dict[str, str]:
        asked.append(kept_by_caller())
        return {}

    monkeypatch.setattr(edge_target, "whole", whole)
    async with jobs_of(tmp_path, KEYS) as jobs:
        assert (await ended(jobs, id, BOB)).status == "completed"
    assert asked == [KEY]


async def test_a_batch_whose_key_is_gone_ends_with_what_is_finished(tmp_path: Path, asked: list[str]) -> None:
    id = await stopped_after(tmp_path, 2, BOB)
    async with jobs_of(tmp_path, "edge.server.api_keys=[ann]") as jobs:
        job = await ended(jobs, id, BOB)
        assert job.status == "failed" and job.errors
        assert job.errors.data[0].message == "its API key is no longer one of the edge's"
        assert len(results(jobs.store.content(BOB, str(job.output_file_id)))) == 2
    assert len(asked) == 2


async def test_answers_whose_input_cannot_be_read_any_more_are_kept(tmp_path: Path, asked: list[str]) -> None:
    id = await stopped_after(tmp_path, 2)
    async with jobs_of(tmp_path) as jobs:
        jobs.store.delete("", jobs.job("", id).input_file_id)
        job = await ended(jobs, id)
        assert job.status == "failed" and len(results(jobs.store.content("", str(job.output_file_id)))) == 2


@pytest.mark.parametrize("failing", ["keep", "_write", "save"])
async def test_a_full_disk_loses_no_answer_asks_nothing_twice_and_leaves_one_output(
    failing: str, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_jobs, "RETRY_SECONDS", 0.0)
    async with jobs_of(tmp_path) as jobs:
        file, working, full = uploaded(jobs), getattr(FileStore, failing), True

        def fail(store: FileStore, *given: Any) -> Any:
            nonlocal full
            if full and (failing == "keep" or len(asked) == 2):
                full = False
                assert list(tmp_path.glob("open/*.results"))
                raise OSError(errno.ENOSPC, "No space left on device")
            return working(store, *given)

        monkeypatch.setattr(FileStore, failing, fail)
        job = await ended(jobs, started(jobs, file))
        assert (job.status, full, len(asked)) == ("completed", False, 2)
        assert len(results(jobs.store.content("", str(job.output_file_id)))) == 2
        assert len(jobs.store.files("")) == 2
    assert not [name for name in names(tmp_path) if name.endswith((".part", ".tmp", ".results"))]


async def test_a_batch_whose_end_could_not_be_kept_is_ended_by_cancelling(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_jobs, "RETRY_SECONDS", 1000.0)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with jobs_of(tmp_path) as jobs:
        with monkeypatch.context() as full:
            full.setattr(batch_jobs, "finalize", fail)
            id = started(jobs, uploaded(jobs))
            await until(lambda: len(asked) == 2 and jobs._current is None)
        assert jobs.job("", id).status == "in_progress"
        assert jobs.cancel("", id).status == "cancelling"
        job = await ended(jobs, id)
        assert job.status == "cancelled" and job.output_file_id


async def test_a_batch_that_is_finalized_is_not_cancelled_any_more(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(*given: Any) -> None:
        assert go_on.wait(30)
        finalizing.finalize(*given)

    monkeypatch.setattr(batch_jobs, "finalize", slow)
    async with jobs_of(tmp_path) as jobs:
        id = started(jobs, uploaded(jobs))
        try:
            await until(lambda: jobs.job("", id).status == "finalizing")
            with pytest.raises(RequestError, match="finalizing already"):
                jobs.cancel("", id)
        finally:
            go_on.set()
        assert (await ended(jobs, id)).status == "completed"


async def test_the_input_of_a_batch_that_has_not_ended_is_not_deleted(tmp_path: Path, asked: list[str]) -> None:
    id = await stopped_after(tmp_path, 1)
    async with jobs_of(tmp_path) as jobs:
        file = jobs.job("", id).input_file_id
        with pytest.raises(FileInUse):
            jobs.delete_file("", file)
        jobs.cancel("", id)
        assert (await ended(jobs, id)).status == "cancelled"
        await until(lambda: jobs._current is None)
        jobs.delete_file("", file)
        with pytest.raises(NotFoundError):
            jobs.store.file("", file)


async def test_what_a_killed_edge_has_left_takes_no_room_for_good(tmp_path: Path, asked: list[str]) -> None:
    async with jobs_of(tmp_path) as jobs:
        id = started(jobs, uploaded(jobs))
        await ended(jobs, id)
        before = names(tmp_path)
    for left in (f"{new_id('file-')}.part", f"{new_id('file-')}.jsonl", f"{id}.0f.tmp", f"{id}.results"):
        (tmp_path / "open" / left).write_bytes(b"left")
    async with jobs_of(tmp_path):
        assert names(tmp_path) == before


def test_a_file_that_cannot_be_kept_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path, 1 << 20)
    monkeypatch.setattr(file_store.os, "fsync", lambda _: 1 / 0)
    id, file = store.begin("")
    file.close()
    with pytest.raises(ZeroDivisionError):
        store.keep("", id, "in.jsonl")
    with pytest.raises(ZeroDivisionError):
        store.write("", id, "out.jsonl", [b"a\n"])
    assert names(tmp_path) == []
    store.close()


@pytest.mark.parametrize(("most", "room"), [(2, 1 << 20), (99, 8 * BLOCK)])
def test_the_oldest_batches_that_have_ended_make_room_for_others(
    most: int, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_store, "MAX_JOBS", most)
    store = FileStore(tmp_path, room)
    ids = [new_id("batch_") for _ in range(5)]
    assert sorted(ids) == ids
    for id in ids:
        store.save("", JobObject(id=id, endpoint=ROUTE, input_file_id="", completion_window="", created_at=0))
    store.drop_old_jobs("", {ids[1]})
    assert store.job_ids("") == [ids[4], ids[3], ids[1]]
    store.close()


async def test_a_page_of_batches_reads_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with jobs_of(tmp_path) as jobs:
        ids = [new_id("batch_") for _ in range(5)]
        for id in ids:
            jobs.store.save("", JobObject(id=id, endpoint=ROUTE, input_file_id="", completion_window="", created_at=0))
        read, job = list[str](), FileStore.job

        def noted(store: FileStore, tenant: str, id: str) -> JobObject:
            read.append(id)
            return job(store, tenant, id)

        monkeypatch.setattr(FileStore, "job", noted)
        page, more = jobs.page("", 2, ids[4])
        assert [one.id for one in page] == read == [ids[3], ids[2]] and more
        page, more = jobs.page("", 3, ids[3])
        assert [one.id for one in page] == [ids[2], ids[1], ids[0]] and not more


async def test_long_files_are_read_beside_the_event_loop(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find what is finished already takes seconds of a long batch."""
    threads, lines = list[threading.Thread](), BatchInput.lines

    class Output(BatchOutput):
        def __init__(self, *given: Any, **named: Any) -> None:
            threads.append(threading.current_thread())
            super().__init__(*given, **named)

    def noted(*given: Any) -> Iterator[BatchLine]:
        for line in lines(*given):
            threads.append(threading.current_thread())
            yield line

    monkeypatch.setattr(batch_jobs, "BatchOutput", Output)
    monkeypatch.setattr(BatchInput, "lines", noted)
    async with jobs_of(tmp_path) as jobs:
        await ended(jobs, started(jobs, uploaded(jobs)))
    assert len(threads) == 3 and threading.main_thread() not in threads
