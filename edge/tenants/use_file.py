"""Keeps the day's sums in a SQLite file, so that a restarted edge goes on counting where the last one ended."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import date

from common.errors import StartError
from edge.tenants.daily_use import DailyUse

log = logging.getLogger(__name__)

WRITE_SECONDS = 5.0
"""Between two writes: as much use is lost at most where the server is killed."""
LOCK_SECONDS = 2.0
"""How long another process may hold the file at the start."""
TABLE = """CREATE TABLE IF NOT EXISTS daily_use (
    day TEXT NOT NULL, tenant TEXT NOT NULL, cost REAL NOT NULL, cloud_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, tenant)
) STRICT"""
Row = tuple[str, float, int]
"""Tenant, cost, cloud tokens."""


class UseFile:
    """One connection, which holds the file for itself until it is closed; used in one thread at a time."""

    def __init__(self, path: str) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite would let everybody read it
        self._connection = sqlite3.connect(path, LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            for statement in (
                "PRAGMA locking_mode = EXCLUSIVE",  # each of two edges would write over the other's sums
                "PRAGMA journal_mode = WAL",
                "PRAGMA synchronous = NORMAL",
                TABLE,
                "BEGIN IMMEDIATE",
                "COMMIT",
            ):
                self._connection.execute(statement)
        except BaseException:
            self._connection.close()
            raise

    def read(self, day: date) -> list[Row]:
        query = "SELECT tenant, cost, cloud_tokens FROM daily_use WHERE day = ?"
        return self._connection.execute(query, (day.isoformat(),)).fetchall()

    def write(self, day: date, rows: Iterable[Row]) -> None:
        """Replaces all rows by these of `day`, in one transaction."""
        connection = self._connection
        with connection:
            connection.execute("BEGIN")
            connection.execute("DELETE FROM daily_use")
            all_rows = [(day.isoformat(), *row) for row in rows]
            connection.executemany("INSERT INTO daily_use VALUES (?, ?, ?, ?)", all_rows)

    def close(self) -> None:
        self._connection.close()


@asynccontextmanager
async def kept(use: DailyUse, path: str) -> AsyncIterator[None]:
    """Around a server's life: `use` begins with what the file at `path` has of today, and is written to it.

    An empty path: neither. Raises StartError for a file that cannot be used: a budget that starts anew unnoticed
    would be spent twice.
    """
    if not path:
        yield
        return
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "budget-file") as thread:
        file = await loop.run_in_executor(thread, _opened, path, use)
        writing = asyncio.create_task(_keep_writing(use, file, thread, use.changes))
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await loop.run_in_executor(thread, _write, file, use.day, _rows(use))
            await loop.run_in_executor(thread, file.close)


def _opened(path: str, use: DailyUse) -> UseFile:
    """The file, whose sums of today are added to `use`."""
    try:
        file = UseFile(path)
        try:
            for tenant, cost, cloud_tokens in file.read(use.day):
                use.add(tenant, cost, cloud_tokens)
        except BaseException:
            file.close()
            raise
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(
            f"inference.budget.database: {path} cannot be used ({reason}): name another file, or remove this one to "
            "count the day anew"
        ) from error
    return file


async def _keep_writing(use: DailyUse, file: UseFile, thread: ThreadPoolExecutor, written: int) -> None:
    """Writes what has changed, until cancelled; `written`: the changes that the file has."""
    while True:
        await asyncio.sleep(WRITE_SECONDS)
        if (changes := use.changes) != written:
            rows = _rows(use)
            if await asyncio.get_running_loop().run_in_executor(thread, _write, file, use.day, rows):
                written = changes


def _rows(use: DailyUse) -> list[Row]:
    return [(tenant, sums.cost, sums.cloud_tokens) for tenant, sums in use.tenants.items()]


def _write(file: UseFile, day: date, rows: list[Row]) -> bool:
    """Whether it was written; a full disk, for example, stops no answer."""
    try:
        file.write(day, rows)
    except (sqlite3.Error, OverflowError) as error:
        log.warning("the day's sums could not be written to inference.budget.database: %s", error)
        return False
    return True
