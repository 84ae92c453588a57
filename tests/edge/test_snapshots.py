"""Sealed snapshots and their folder: altered bits and hostile names are refused, a crash leaves no partial file."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import FrameworkError, NotFoundError, RequestError, SnapshotError, StartError
from edge.kv import snapshot_format
from edge.kv.snapshot_folder import SnapshotFolder, file_name
from edge.kv.snapshot_format import seal, unseal

KEY = b"k" * 32
TOKENS = [5, 0, 2**31 - 1, 7]
STATE = bytes(range(256)) + b"\0" * 300


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SnapshotFolder]:
    with contextlib.closing(SnapshotFolder(tmp_path / "cache")) as opened:
        yield opened


@pytest.fixture(params=["plain", "compressed"])
def sealed(request: pytest.FixtureRequest) -> bytes:
    return seal(KEY, "model", TOKENS, STATE, compress=request.param == "compressed")


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_unsealing_returns_what_was_sealed(sealed: bytes) -> None:
    assert unseal(KEY, "model", sealed) == (TOKENS, STATE)


def test_compression_makes_it_smaller() -> None:
    plain, compressed = (seal(KEY, "model", TOKENS, STATE, compress) for compress in (False, True))
    assert len(compressed) < len(plain)


def test_a_snapshot_truncated_at_any_byte_or_extended_is_refused(sealed: bytes) -> None:
    for data in (*(sealed[:length] for length in range(len(sealed))), sealed + b"\0"):
        with pytest.raises(SnapshotError):
            unseal(KEY, "model", data)


def test_any_flipped_bit_is_refused(sealed: bytes) -> None:
    for bit in range(8 * len(sealed)):
        with pytest.raises(SnapshotError):
            unseal(KEY, "model", flipped(sealed, bit))


def test_without_the_seal_a_flipped_bit_would_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = seal(KEY, "model", TOKENS, STATE)
    monkeypatch.setattr(snapshot_format, "_is_genuine", lambda key, whole: True)
    assert unseal(KEY, "model", flipped(sealed, 8 * (len(sealed) - 100))).state != STATE


def test_another_key_or_another_model_is_refused(sealed: bytes) -> None:
    for key, fingerprint in ((b"x" * 32, "model"), (KEY, "other")):
        with pytest.raises(SnapshotError):
            unseal(key, fingerprint, sealed)


def test_written_files_are_read_back_and_listed_by_age(folder: SnapshotFolder, sealed: bytes) -> None:
    for name in ("new.kv", "old.kv"):
        folder.write(name, sealed)
    os.utime(folder.path / "old.kv", (1, 1))
    assert folder.files() == ["old.kv", "new.kv"]
    assert folder.read("new.kv") == sealed
    assert folder.describe("new.kv")[1] == TOKENS
    folder.remove("new.kv")
    folder.remove("new.kv")
    assert folder.files() == ["old.kv"]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/b", "..", ".", "", ".hidden", "a\0b", "x" * 101, "é", "a\n", "-x/"]
)
def test_a_name_that_could_lead_out_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="invalid snapshot name"):
        file_name(name)


def test_links_and_pipes_are_not_followed(folder: SnapshotFolder, tmp_path: Path, sealed: bytes) -> None:
    (tmp_path / "outside.kv").write_bytes(sealed)
    os.symlink("../outside.kv", folder.path / "link.kv")
    os.mkfifo(folder.path / "pipe.kv")
    (folder.path / "folder.kv").mkdir()
    for name in ("link.kv", "pipe.kv", "folder.kv"):
        with pytest.raises((OSError, SnapshotError)):
            folder.read(name)


def test_writing_over_a_link_replaces_the_link(folder: SnapshotFolder, tmp_path: Path, sealed: bytes) -> None:
    outside = tmp_path / "outside.kv"
    outside.write_bytes(b"mine")
    os.symlink(outside, folder.path / "link.kv")
    folder.write("link.kv", sealed)
    assert outside.read_bytes() == b"mine"
    assert folder.read("link.kv") == sealed


def test_a_linked_inner_folder_is_refused(folder: SnapshotFolder, tmp_path: Path) -> None:
    os.symlink(tmp_path, folder.path / "inner")
    with pytest.raises(OSError, match="inner"):
        SnapshotFolder(Path("inner"), inside=folder)


def test_a_file_whose_size_differs_from_its_header_is_refused_unread(folder: SnapshotFolder, sealed: bytes) -> None:
    for data in (sealed[:-1], sealed + b"\0", b"", b"nonsense" * 20):
        folder.write("x.kv", data)
        with pytest.raises(SnapshotError):
            folder.read("x.kv")
        with pytest.raises(SnapshotError):
            folder.describe("x.kv")


def test_a_failed_write_leaves_the_old_file(
    folder: SnapshotFolder, sealed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("x.kv", sealed)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write("x.kv", b"other")
    assert os.listdir(folder.path) == ["x.kv"]
    assert folder.read("x.kv") == sealed


WRITER = """
import sys
from pathlib import Path
from edge.kv.snapshot_folder import SnapshotFolder
from edge.kv.snapshot_format import seal
folder = SnapshotFolder(Path(sys.argv[1]))
for turn in range(10_000):
    folder.write(f"{turn % 3}.kv", seal(b"k" * 32, "model", [turn], bytes([turn % 256]) * 4_000_000))
"""


def test_a_process_killed_while_writing_leaves_only_complete_files(folder: SnapshotFolder) -> None:
    for delay in (0.01, 0.02, 0.03):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder.path)]) as writer:
            deadline = time.monotonic() + 60
            while not any(name.endswith(".kv") for name in os.listdir(folder.path)) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        whole = folder.files()
        assert whole
        assert sorted(os.listdir(folder.path)) == sorted(whole)
        for name in whole:
            (turn,), state = unseal(KEY, "model", folder.read(name))
            assert state == bytes([turn % 256]) * 4_000_000
            folder.remove(name)


def test_the_key_is_created_once_and_only_its_owner_can_read_it(folder: SnapshotFolder) -> None:
    key = folder.key()
    assert len(key) == 32
    assert folder.key() == key
    assert (folder.path / "key").stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700


def shared(path: Path) -> None:
    path.write_bytes(b"k" * 32)
    path.chmod(0o644)


def short(path: Path) -> None:
    path.write_bytes(b"k")
    path.chmod(0o600)


def linked(path: Path) -> None:
    (path.parent.parent / "elsewhere").write_bytes(b"k" * 32)
    path.symlink_to("../elsewhere")


@pytest.mark.parametrize("spoil", [shared, short, linked])
def test_a_key_that_is_not_secret_is_refused(folder: SnapshotFolder, spoil: Callable[[Path], None]) -> None:
    spoil(folder.path / "key")
    with pytest.raises((StartError, OSError)):
        folder.key()


def test_a_snapshot_error_is_a_request_error_in_one_line(sealed: bytes) -> None:
    with pytest.raises(FrameworkError) as failure:
        unseal(KEY, "other", sealed)
    assert isinstance(failure.value, RequestError) and not isinstance(failure.value, NotFoundError)
    assert "\n" not in failure.value.message
