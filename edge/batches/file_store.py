"""Keeps the files and jobs of batches in a folder: one within it for each tenant, who finds only its own."""

import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, Self, TypeVar

import msgspec

from common.errors import ConfigError, NotFoundError, RequestError
from edge.batches.objects import UNFINISHED, FileObject, JobObject

BLOCK = 4096
"""Bytes that a file counts at least."""
MAX_FILES = 10_000
"""Files of one tenant, jobs and what is written about files included."""
MAX_JOBS = 1000
"""Of one tenant, who cannot delete them: the oldest that have ended go."""
OPEN = "open"
"""The folder of the tenant without a name, on an edge without API keys."""
_ID = re.compile(r"(file-|batch_)[0-9a-f]{24}")
T = TypeVar("T")


def new_id(kind: Literal["file-", "batch_"]) -> str:
    """The ids of batches are in the order in which they were made."""
    return kind + (secrets.token_hex(12) if kind == "file-" else f"{time.time_ns():016x}{secrets.token_hex(4)}")


def output_id(job_id: str, kind: Literal["output", "error"]) -> str:
    """Always the same: a job that is finalized again replaces what it wrote before."""
    return f"file-{hashlib.blake2b(f'{job_id} {kind}'.encode(), digest_size=12).hexdigest()}"


class FileStore:
    """Owns the folder, which nobody else can read or use at the same time; `close`, or leaving it, gives it back.

    Raises OSError where the disk does.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        try:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"edge.batches.directory: {folder}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ConfigError(f"edge.batches.directory: another edge uses {folder}") from error

    def close(self) -> None:
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def clean(self) -> None:
        """Drops what an edge that was killed has left: files that were never kept, results of jobs that have ended."""
        for tenant in self.tenants():
            for path in list(self._of(tenant).iterdir()):
                unkept = path.suffix == ".jsonl" and not path.with_suffix(".json").exists()
                ended = path.suffix == ".results" and self._has_ended(tenant, path.stem)
                if unkept or ended or path.suffix in (".part", ".tmp"):
                    path.unlink(missing_ok=True)

    def tenants(self) -> list[str]:
        """Those that have files."""
        return ["" if one.name == OPEN else one.name for one in self._folder.iterdir() if one.is_dir()]

    def room(self, tenant: str) -> int:
        """Bytes that the tenant's files may still take; raises RequestError if there are none."""
        entries = list(os.scandir(self._of(tenant)))
        sizes = 0
        for one in entries:
            with suppress(FileNotFoundError):
                sizes += max(BLOCK, one.stat().st_size)
        if sizes >= self._max_bytes or len(entries) >= MAX_FILES:
            raise RequestError(f"your files take all of {self._max_bytes} bytes or {MAX_FILES} files: delete some")
        return self._max_bytes - sizes

    def begin(self, tenant: str) -> tuple[str, BinaryIO]:
        """The id of a new file, and where its content is to be written before it is kept with `keep`."""
        id = new_id("file-")
        descriptor = os.open(self._of(tenant) / f"{id}.part", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return id, os.fdopen(descriptor, "wb")

    def keep(
        self, tenant: str, id: str, filename: str, purpose: Literal["batch", "batch_output"] = "batch"
    ) -> FileObject:
        """Makes a file that is written whole one that can be found."""
        part = self._of(tenant) / f"{id}.part"
        name = filename.encode(errors="replace").decode()  # a form may have lone surrogates
        made = FileObject(id=id, bytes=part.stat().st_size, created_at=int(time.time()), filename=name, purpose=purpose)
        kept = part.rename(part.with_suffix(".jsonl"))
        try:
            self._write(tenant, id, made)
        except BaseException:
            kept.unlink()
            raise
        return made

    def drop(self, tenant: str, id: str) -> None:
        """Forgets a file that is not kept."""
        (self._of(tenant) / f"{id}.part").unlink(missing_ok=True)

    def write(self, tenant: str, id: str, filename: str, lines: Iterable[bytes]) -> str | None:
        """Keeps these lines, the output of a job, as the file with this id; no file, and None, if there are none."""
        part = self._of(tenant) / f"{id}.part"
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            if part.stat().st_size:
                return self.keep(tenant, id, filename, "batch_output").id
        finally:
            self.drop(tenant, id)
        with suppress(NotFoundError):
            self.delete(tenant, id)
        return None

    def file(self, tenant: str, id: str) -> FileObject:
        """Raises NotFoundError, also for another tenant's."""
        return self._read(tenant, id, FileObject)

    def content(self, tenant: str, id: str) -> Path:
        """Where a file's content is; raises NotFoundError."""
        return self._of(tenant) / f"{self.file(tenant, id).id}.jsonl"

    def files(self, tenant: str) -> list[FileObject]:
        """The newest first."""
        return sorted(self._all(tenant, "file-", FileObject), key=lambda one: (-one.created_at, one.id))

    def delete(self, tenant: str, id: str) -> None:
        path = self.content(tenant, id)
        path.with_suffix(".json").unlink()
        path.unlink(missing_ok=True)

    def job(self, tenant: str, id: str) -> JobObject:
        """Raises NotFoundError, also for another tenant's."""
        return self._read(tenant, id, JobObject)

    def job_ids(self, tenant: str) -> list[str]:
        """The newest first."""
        return sorted((path.stem for path in self._of(tenant).glob("batch_*.json")), reverse=True)

    def unfinished(self, tenant: str) -> list[JobObject]:
        return [job for job in self._all(tenant, "batch_", JobObject) if job.status in UNFINISHED]

    def drop_old_jobs(self, tenant: str, unfinished: Collection[str]) -> None:
        """The oldest that have ended go where jobs are more than MAX_JOBS, or take over a quarter of the room."""
        taken = 0
        for number, id in enumerate(self.job_ids(tenant)):
            path = self._of(tenant) / f"{id}.json"
            taken += max(BLOCK, path.stat().st_size)
            if (number >= MAX_JOBS or taken > self._max_bytes // 4) and id not in unfinished:
                path.unlink()

    def save(self, tenant: str, job: JobObject) -> None:
        self._write(tenant, job.id, job)

    def results(self, tenant: str, job: JobObject) -> Path:
        """Where a job that runs writes its results."""
        return self._of(tenant) / f"{job.id}.results"

    def _has_ended(self, tenant: str, id: str) -> bool:
        try:
            return self.job(tenant, id).status not in UNFINISHED
        except NotFoundError:
            return not (self._of(tenant) / f"{id}.json").exists()

    def _of(self, tenant: str) -> Path:
        folder = self._folder / (tenant or OPEN)
        folder.mkdir(0o700, exist_ok=True)
        return folder

    def _read(self, tenant: str, id: str, type_: type[T]) -> T:
        if _ID.fullmatch(id):
            with suppress(FileNotFoundError, msgspec.MsgspecError):
                return msgspec.json.decode((self._of(tenant) / f"{id}.json").read_bytes(), type=type_)
        raise NotFoundError(f"no such file or batch: {id[:100]!r}")

    def _all(self, tenant: str, kind: str, type_: type[T]) -> Iterator[T]:
        for path in self._of(tenant).glob(f"{kind}*.json"):
            with suppress(NotFoundError):
                yield self._read(tenant, path.stem, type_)

    def _write(self, tenant: str, id: str, value: FileObject | JobObject) -> None:
        """Atomically: what a crash leaves is the old value or the new one."""
        path = self._of(tenant) / f"{id}.json"
        temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.encode(value))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
