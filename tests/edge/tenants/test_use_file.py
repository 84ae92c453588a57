"""The day's sums on disk: kept over a restart, for one edge at a time, without keys, and refused where damaged."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from common.errors import StartError
from edge.tenants import use_file
from edge.tenants.daily_use import DailyUse, DayUse
from edge.tenants.use_file import UseFile, kept

HEADER = 100
"""Bytes before a database's first table, where SQLite notes that it is read with a log."""
NOON = datetime(2026, 3, 1, 12)


def day_of(now: datetime = NOON) -> DailyUse:
    return DailyUse(lambda: now)


async def after_restart(path: Path, now: datetime = NOON) -> dict[str, DayUse]:
    use = day_of(now)
    async with kept(use, str(path)):
        return dict(use.tenants)


async def test_a_restart_goes_on_counting_and_another_day_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "use.sqlite"
    for expected in (30, 60):
        use = day_of()
        async with kept(use, str(path)):
            use.add("ann", 0.5, 10)
            use.add("bob", 0.25, 20)
        assert sum(one.cloud_tokens for one in use.tenants.values()) == expected
    assert await after_restart(path) == {"ann": DayUse(1.0, 20), "bob": DayUse(0.5, 40)}
    assert await after_restart(path, NOON + timedelta(days=1)) == {}
    assert await after_restart(path, NOON) == {}, "the file has one day"


def copied(path: Path, copy: Path) -> Path:
    """What a kill would leave: the file and its write-ahead log."""
    for suffix in ("", "-wal"):
        if (part := Path(f"{path}{suffix}")).exists():
            Path(f"{copy}{suffix}").write_bytes(part.read_bytes())
    return copy


async def test_an_edge_that_is_killed_loses_no_more_than_since_the_last_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_file, "WRITE_SECONDS", 0.01)
    path, copy, use = tmp_path / "use.sqlite", tmp_path / "copy.sqlite", day_of()
    async with kept(use, str(path)):
        use.add("ann", 0.5, 10)
        async with asyncio.timeout(20):
            while not await after_restart(copied(path, copy)):
                await asyncio.sleep(0.01)
        assert await after_restart(copied(path, copy)) == {"ann": DayUse(0.5, 10)}


def damaged(path: Path) -> None:
    path.write_bytes(b"not a database, but as long as a page of one " * 100)


def damaged_within(path: Path) -> None:
    with closing(UseFile(str(path))) as file:
        file.write(NOON.date(), [(f"tenant {n}", 1.0, n) for n in range(500)])
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(255 for _ in data[4096:])
    path.write_bytes(data)


def of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE daily_use (something TEXT)")


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [damaged, damaged_within, of_another_program, a_folder])
async def test_a_file_that_cannot_be_used_ends_the_start_and_stays_as_it_was(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "use.sqlite"
    spoil(path)
    before = path.read_bytes()[HEADER:] if path.is_file() else b""
    with pytest.raises(StartError, match=r"^inference\.budget\.database: .*use\.sqlite cannot be used"):
        await after_restart(path)
    assert (path.read_bytes()[HEADER:] if path.is_file() else b"") == before


async def test_a_folder_that_does_not_exist_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file or directory"):
        await after_restart(tmp_path / "none" / "use.sqlite")


async def test_a_second_edge_cannot_take_the_file_of_a_running_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_file, "LOCK_SECONDS", 0.05)
    path, use = tmp_path / "use.sqlite", day_of()
    async with kept(use, str(path)):
        with pytest.raises(StartError, match="locked"):
            await after_restart(path)
        use.add("ann", 0.5, 10)
    assert await after_restart(path) == {"ann": DayUse(0.5, 10)}


async def test_a_disk_that_is_full_stops_nothing_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    use = day_of()
    with monkeypatch.context() as broken:
        broken.setattr(UseFile, "write", full)
        async with kept(use, str(tmp_path / "use.sqlite")):
            use.add("ann", 0.5, 10)
    assert "disk is full" in caplog.text


async def test_sums_beyond_what_the_file_holds_stay_at_the_most_and_stop_no_writing(tmp_path: Path) -> None:
    path, use = tmp_path / "use.sqlite", day_of()
    async with kept(use, str(path)):
        use.add("ann", 0.5, 2**62)
        use.add("ann", 0.5, 2**63)
    assert await after_restart(path) == {"ann": DayUse(1.0, 2**63 - 1)}
    with closing(UseFile(str(path))) as file:
        assert not use_file._write(file, NOON.date(), [("ann", 0.0, 2**63)])
        assert use_file._write(file, NOON.date(), [("ann", 0.0, 1)])


async def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "use.sqlite"
    async with kept(use := day_of(), str(path)):
        use.add("ann", 0.5, 10)
    assert path.stat().st_mode & 0o777 == 0o600
