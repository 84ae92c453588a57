"""Ends a job: makes files of its results, and writes its last state."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from common.batch.lines import BatchResult
from common.errors import FrameworkError
from edge.batches.file_store import FileStore, output_id
from edge.batches.objects import JobError, JobErrors, JobObject


def finalize(
    store: FileStore,
    tenant: str,
    job: JobObject,
    results: Callable[[], Iterable[bytes]],
    failure: Exception | None,
) -> None:
    """Makes one file of answers and one of errors, in the order of `results`, which are dropped when both are kept.

    Raises OSError where the disk does: nothing is lost then, and it may be called again.
    """
    answers = store.write(tenant, output_id(job.id, "output"), f"{job.id}_output.jsonl", _chosen(results(), True))
    errors = store.write(tenant, output_id(job.id, "error"), f"{job.id}_error.jsonl", _chosen(results(), False))
    kept = store.results(tenant, job)
    ended = replace(job, output_file_id=answers, error_file_id=errors)
    store.save(tenant, _ended(ended, kept, failure))
    kept.unlink(missing_ok=True)


def whole_lines(path: Path) -> Iterator[bytes]:
    """The results of a job whose input is not read: in the order in which they came, without one that is torn."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _ended(job: JobObject, results: Path, failure: Exception | None) -> JobObject:
    """What it says of a failure names no path of this machine."""
    now = int(time.time())
    if failure is not None:
        text = failure.message if isinstance(failure, FrameworkError) else "the disk failed"
        text = text.replace(f"{results.with_name(job.input_file_id)}.jsonl", "the input")
        text = text.replace(str(results), "the results")
        errors = JobErrors(data=[JobError(code="batch_failed", message=text)])
        return replace(job, errors=errors, status="failed", failed_at=now)
    if job.status == "cancelling":
        return replace(job, status="cancelled", cancelled_at=now)
    return replace(job, status="completed", completed_at=now)


def _chosen(lines: Iterable[bytes], answered: bool) -> Iterator[bytes]:
    for line in lines:
        if msgspec.json.decode(line, type=BatchResult).answered is answered:
            yield line
