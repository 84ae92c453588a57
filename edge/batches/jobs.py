"""Runs the jobs of `/v1/batches` one at a time, and goes on with them after a restart."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from common.batch.batch_input import BatchInput
from common.batch.batch_output import BatchOutput
from common.batch.runner import BatchRunner
from common.errors import FileInUse, FrameworkError, NotFoundError, RequestError
from common.http.auth import tenant_name
from edge.api.context import ServerContext
from edge.batches.edge_target import EdgeTarget
from edge.batches.file_store import FileStore, new_id
from edge.batches.finalizing import finalize, whole_lines
from edge.batches.objects import JobObject, NewJob, RequestCounts
from edge.dialects.response_store import ResponseStore

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""A job whose key has to wait longer for its limits lets others run meanwhile."""
RETRY_SECONDS = 30.0
"""Until a job goes on whose state or results could not be kept, as on a full disk."""


class BatchJobs:
    """Owns the task that runs the jobs of a `store`, in the order in which they were made; use `async with`.

    A job whose key has reached a limit is put aside until it may go on.
    """

    def __init__(self, store: FileStore, context: ServerContext, kept: ResponseStore) -> None:
        self.store = store
        self._context, self._kept = context, kept
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._tenants = {tenant_name(key) for key in context.config.edge.keys} or {""}
        self._inputs: dict[tuple[str, str], str] = {}
        """The jobs that have not ended, and the files that they read."""
        self._aside: dict[tuple[str, str], asyncio.TimerHandle] = {}
        """The jobs that are put aside, and what puts them into the queue again."""
        self._current: tuple[str, JobObject] | None = None
        """The job that runs, and whose it is."""
        self._answering: asyncio.Task[float] | None = None
        """Its lines, once it is validated."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for tenant, job in await asyncio.to_thread(self._earlier):
            self._inputs[tenant, job.id] = job.input_file_id
            self._queue.put_nowait((tenant, job.id))
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """What is under way goes on when the edge starts again."""
        assert self._task is not None
        for timer in self._aside.values():
            timer.cancel()
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def create(self, tenant: str, wanted: NewJob, private: bool = False) -> JobObject:
        """Raises NotFoundError for a file that is not there, RequestError if there is no room for results."""
        self.store.file(tenant, wanted.input_file_id)
        self.room(tenant)
        job = JobObject(
            id=new_id("batch_"),
            endpoint=wanted.endpoint,
            input_file_id=wanted.input_file_id,
            completion_window=wanted.completion_window,
            created_at=int(time.time()),
            metadata=wanted.metadata,
            private=private,
        )
        self.store.save(tenant, job)
        self._inputs[tenant, job.id] = job.input_file_id
        self._queue.put_nowait((tenant, job.id))
        return job

    def job(self, tenant: str, id: str) -> JobObject:
        """The job as it is now; raises NotFoundError."""
        current = self._current
        if current is not None and (current[0], current[1].id) == (tenant, id):
            return current[1]
        return self.store.job(tenant, id)

    def page(self, tenant: str, limit: int, after: str | None) -> tuple[list[JobObject], bool]:
        """The newest first, behind the one that `after` names; and whether there are more."""
        ids = self.store.job_ids(tenant)
        begin = ids.index(after) + 1 if after in ids else 0
        found = []
        for id in ids[begin : begin + limit]:
            with suppress(NotFoundError):
                found.append(self.job(tenant, id))
        return found, begin + limit < len(ids)

    def room(self, tenant: str) -> int:
        """As the store's; jobs that ended long ago make some."""
        self.store.drop_old_jobs(tenant, {id for owner, id in self._inputs if owner == tenant})
        return self.store.room(tenant)

    def delete_file(self, tenant: str, id: str) -> None:
        """Raises NotFoundError, and FileInUse for the input of a job that has not ended."""
        if any(owner == tenant and file == id for (owner, _), file in self._inputs.items()):
            raise FileInUse("a batch that has not ended reads the file: cancel it first")
        self.store.delete(tenant, id)

    def cancel(self, tenant: str, id: str) -> JobObject:
        """Ends a job; what is finished of it comes into its files. Raises RequestError for one that has ended."""
        job = self.job(tenant, id)
        if job.status == "cancelling" and (tenant, id) not in self._aside:
            return job
        if job.status not in ("validating", "in_progress", "cancelling"):
            raise RequestError(f"the batch is {job.status} already")
        job.status, job.cancelling_at = "cancelling", job.cancelling_at or int(time.time())
        if self._is_current(tenant, id) and self._answering is not None:
            self._answering.cancel()
        self.store.save(tenant, job)
        if (tenant, id) in self._aside:
            self._take_up(tenant, id)
        return job

    def _is_current(self, tenant: str, id: str) -> bool:
        return self._current is not None and (self._current[0], self._current[1].id) == (tenant, id)

    def _earlier(self) -> list[tuple[str, JobObject]]:
        """The jobs that an earlier edge has not ended, the oldest first."""
        self.store.clean()
        found = [(tenant, job) for tenant in self.store.tenants() for job in self.store.unfinished(tenant)]
        return sorted(found, key=lambda one: (one[1].created_at, one[1].id))

    async def _run(self) -> None:
        while True:
            tenant, id = await self._queue.get()
            try:
                self._current = tenant, self.store.job(tenant, id)
                if wait := await self._one(*self._current):
                    timer = asyncio.get_running_loop().call_later(wait, self._take_up, tenant, id)
                    self._aside[tenant, id] = timer
            except NotFoundError:
                self._inputs.pop((tenant, id), None)
            except Exception:
                log.exception("batch %s: its state cannot be kept; it goes on in %g s", id, RETRY_SECONDS)
                timer = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._take_up, tenant, id)
                self._aside[tenant, id] = timer
            finally:
                self._current = None

    def _take_up(self, tenant: str, id: str) -> None:
        """Queues a job that was put aside."""
        self._aside.pop((tenant, id)).cancel()
        self._queue.put_nowait((tenant, id))

    async def _one(self, tenant: str, job: JobObject) -> float:
        """Runs a job until it ends, is cancelled, or the edge stops: 0; or the seconds that it has to be put aside."""
        results = self.store.results(tenant, job)
        try:
            if tenant not in self._tenants:
                raise RequestError("its API key is no longer one of the edge's")
            given = await asyncio.to_thread(BatchInput, self.store.content(tenant, job.input_file_id), job.endpoint)
            output = await asyncio.to_thread(BatchOutput, results, given, resume=True)
        except (FrameworkError, OSError) as error:
            await self._end(tenant, job, partial(whole_lines, results), error)
            return 0.0
        with output:
            failure: Exception | None = None
            try:
                if job.status != "cancelling":
                    wait = await self._answer(tenant, job, given, output)
                    if wait and job.status == "in_progress":
                        self.store.save(tenant, job)
                        return wait
            except (FrameworkError, OSError) as error:
                failure = error
            await self._end(tenant, job, output.in_order, failure)
        return 0.0

    async def _end(
        self, tenant: str, job: JobObject, results: Callable[[], Iterable[bytes]], failure: Exception | None
    ) -> None:
        """Also where the edge stops meanwhile: its files are not another edge's before they are whole."""
        job.waits_until = job.waits_because = None
        if job.status != "cancelling":
            job.status, job.finalizing_at = "finalizing", int(time.time())
        work = asyncio.create_task(asyncio.to_thread(finalize, self.store, tenant, job, results, failure))
        try:
            await asyncio.shield(work)
            del self._inputs[tenant, job.id]
        finally:
            await asyncio.wait({work})

    async def _answer(self, tenant: str, job: JobObject, given: BatchInput, output: BatchOutput) -> float:
        """Until each line has a result, or the job was cancelled: 0; or the seconds that the others must wait."""
        room, target = self.store.room(tenant) + output.size, EdgeTarget(self._context, self._kept, tenant, job.private)

        def count(_: int) -> None:
            job.request_counts = RequestCounts(len(given), output.finished - output.failed, output.failed)
            if output.size > room:
                raise RequestError("the results do not fit the room that is left for your files")

        job.waits_until = job.waits_because = None
        job.status, job.in_progress_at = "in_progress", job.in_progress_at or int(time.time())
        self.store.save(tenant, job)
        count(0)
        runner = BatchRunner(given, output, target, count, PATIENCE_SECONDS)
        self._answering = asyncio.create_task(runner.run(target.capacity))
        try:
            await asyncio.wait({self._answering})
            wait = 0.0 if self._answering.cancelled() else self._answering.result()
            if wait and runner.refusal is not None:
                job.waits_until, job.waits_because = math.ceil(runner.refusal.until), runner.refusal.reason
                log.info("batch %s waits for %.0f s: %s", job.id, wait, job.waits_because)
            return wait
        finally:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)
            self._answering = None
