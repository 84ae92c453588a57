"""Cores and memory: those of the machine, or of the container if it allows less."""

import logging
from pathlib import Path

import pytest

from common.hardware import (
    SMALL_BYTES,
    Memory,
    Setting,
    choose_dtype,
    cpu_flags,
    gib,
    log_settings,
    memory,
    usable_cores,
    usable_cpus,
)

GIB = 1 << 30
FAST = frozenset({"avx512f", "avx512_bf16"})
MEMINFO = "MemTotal: 16777216 kB\nMemFree: 1024 kB\nMemAvailable: 8388608 kB\nSwapFree: 1048576 kB\n"
MACHINE = Memory(16 * GIB, 8 * GIB, GIB)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Stands in for /proc and /sys/fs/cgroup, without limits yet."""
    write(tmp_path / "proc" / "meminfo", MEMINFO)
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def limited(system: Path, group: str, folder: str, **files: str) -> tuple[Path, Path]:
    write(system / "proc" / "self" / "cgroup", group)
    for name, text in files.items():
        write(system / "cgroup" / folder / name.replace("__", "."), text)
    return system / "proc", system / "cgroup"


def test_without_a_container_the_machines_memory_counts(system: Path) -> None:
    assert memory(system / "proc", system / "cgroup") == MACHINE


def test_a_system_that_does_not_say_has_unknown_memory(system: Path) -> None:
    assert memory(system / "nothing", system / "cgroup") is None


def test_a_containers_limit_counts_and_its_file_caches_are_free(system: Path) -> None:
    stat = f"anon {2 * GIB}\nactive_file {GIB // 2}\ninactive_file {GIB // 2}\n"
    used = {"memory__current": f"{3 * GIB}\n", "memory__stat": stat}
    folders = limited(system, "0::/box/inner\n", "box/inner", memory__max=f"{4 * GIB}\n", **used)
    assert memory(*folders) == Memory(4 * GIB, 2 * GIB, GIB)


def test_a_limit_of_an_outer_group_counts_too(system: Path) -> None:
    limited(system, "0::/box/inner\n", "box/inner", memory__max="max\n", memory__current="5\n")
    folders = limited(system, "0::/box/inner\n", "box", memory__max=f"{2 * GIB}\n", memory__current="0\n")
    assert memory(*folders) == Memory(2 * GIB, 2 * GIB, GIB)


def test_a_container_that_sees_only_its_own_group_is_limited_all_the_same(system: Path) -> None:
    group = "7:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n"
    used = {"memory__usage_in_bytes": f"{GIB}\n", "memory__stat": "cache 5\n"}
    folders = limited(system, group, "memory", memory__limit_in_bytes=f"{3 * GIB}\n", **used)
    assert memory(*folders) == Memory(3 * GIB, 2 * GIB, GIB)


def test_a_group_of_version_1_without_a_limit_changes_nothing(system: Path) -> None:
    folders = limited(system, "4:memory:/\n", "memory", memory__limit_in_bytes="9223372036854771712\n")
    assert memory(*folders) == MACHINE


@pytest.mark.parametrize(
    ("group", "folder", "files", "cores"),
    [
        ("0::/\n", ".", {"cpu__max": "100000 100000\n"}, 1),
        ("0::/\n", ".", {"cpu__max": "50000 100000\n"}, 1),
        ("0::/\n", ".", {"cpu__max": "max 100000\n"}, None),
        ("2:cpu,cpuacct:/\n", "cpu", {"cpu__cfs_quota_us": "-1\n", "cpu__cfs_period_us": "100000\n"}, None),
        ("2:cpu,cpuacct:/\n", "cpu", {"cpu__cfs_quota_us": "90000\n", "cpu__cfs_period_us": "100000\n"}, 1),
    ],
)
def test_a_quota_of_cpu_time_limits_the_cores(
    system: Path, group: str, folder: str, files: dict[str, str], cores: int | None
) -> None:
    assert usable_cores(*limited(system, group, folder, **files)) == (cores or len(usable_cpus()))


def test_sizes_are_written_for_people() -> None:
    assert (gib(3 << 29), gib(5 << 20)) == ("1.5 GiB", "5 MiB")
    assert str(MACHINE) == "8.0 GiB of 16.0 GiB are free"


def test_each_setting_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_settings("a model", {"dtype": Setting("float32", "it is small"), "threads": Setting(2, "all of them")})
    assert caplog.messages == ["a model: dtype float32: it is small", "a model: threads 2: all of them"]


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_large_model_is_computed_in_bfloat16_where_the_cpu_can(flag: str) -> None:
    choice = choose_dtype({"sse2", flag}, 6 * GIB)
    assert (choice.value, flag in choice.why) == ("bfloat16", True)


def test_without_such_instructions_everything_is_float32() -> None:
    assert choose_dtype({"avx512f", "avx2"}, 6 * GIB).value == "float32"
    assert choose_dtype((), None).value == "float32"


def test_a_small_model_stays_exact_and_an_unknown_one_counts_as_large() -> None:
    assert choose_dtype(FAST, SMALL_BYTES).value == "float32"
    assert choose_dtype(FAST, SMALL_BYTES + 1).value == "bfloat16"
    assert choose_dtype(FAST, None).value == "bfloat16"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor : 0\nflags\t\t: fpu avx512_bf16\nbugs : spectre\n", {"fpu", "avx512_bf16"}),
        ("Features\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("", set()),
    ],
)
def test_flags_are_read_as_linux_lists_them(text: str, flags: set[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_flags(tmp_path / "cpuinfo") == flags
    assert cpu_flags(tmp_path / "none") == frozenset()
