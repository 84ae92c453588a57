"""What the machine offers this process: cores, memory and number formats, within the limits of its container."""

import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
GIB = 1 << 30
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""CPU flags of bfloat16 instructions: two of x86, one of Arm."""
SMALL_BYTES = 256 << 20
"""Weights in float32 up to which bfloat16 saves at most a few milliseconds a step; docs/USAGE.md has the figures."""

log = logging.getLogger(__name__)


class Setting(Struct, frozen=True):
    """A setting that fits the machine: the value in use, and in one sentence why."""

    value: str | int
    why: str


def log_settings(model: str, settings: Mapping[str, Setting]) -> None:
    """Logs a line for each setting of `model`."""
    for name, setting in settings.items():
        log.info("%s: %s %s: %s", model, name, setting.value, setting.why)


class Memory(NamedTuple):
    """Bytes of memory that this process may use."""

    total: int
    available: int
    """Free, or held only by caches that the system gives up."""
    swap: int = 0
    """Free space in the swap file; slow, but nothing is killed while there is some."""

    def __str__(self) -> str:
        return f"{gib(self.available)} of {gib(self.total)} are free"


def gib(size: int) -> str:
    """`size` bytes, for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.0f} MiB"


def usable_cpus() -> frozenset[int]:
    """The CPUs that this process may run on."""
    known = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return frozenset(known)


def usable_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """How many cores this process may keep busy: its CPUs, or fewer if its container has a quota of CPU time."""
    quotas = [quota for folder in _cgroup("cpu", proc, cgroups) if (quota := _cpu_quota(folder))]
    return max(1, min(len(usable_cpus()), *map(math.ceil, quotas), 1 << 20))


def cpu_flags(file: Path = PROC / "cpuinfo") -> frozenset[str]:
    """The instruction sets of this CPU, by their names in Linux; empty if the system does not say."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return frozenset()
    names = (line.partition(":") for line in lines)
    return frozenset(flag for key, _, value in names if key.strip() in ("flags", "Features") for flag in value.split())


def choose_dtype(flags: Collection[str], float32_bytes: int | None) -> Setting:
    """The fastest number format on a CPU with these flags, but float32 for small weights; None: size unknown."""
    known = sorted(BF16_FLAGS.intersection(flags))
    if not known:
        return Setting("float32", "this CPU has no bfloat16 instructions; emulated ones take 3 to 4 times as long")
    if float32_bytes is not None and float32_bytes <= SMALL_BYTES:
        size = f"the weights are small ({gib(float32_bytes)})"
        return Setting("float32", f"{size}, and float32 gives the same tokens whatever else is in a step")
    return Setting(
        "bfloat16", f"this CPU computes it ({known[0]}): half the memory of float32, and up to twice as fast"
    )


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory | None:
    """The memory of the machine, or of its container if that allows less; None if the system does not say."""
    machine = _fields(proc / "meminfo")
    if not {"MemTotal:", "MemAvailable:"} <= machine.keys():
        return None
    total, available, swap = (1024 * machine.get(key, 0) for key in ("MemTotal:", "MemAvailable:", "SwapFree:"))
    for folder in _cgroup("memory", proc, cgroups):
        if limit := _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes"):
            used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
            total, available = min(total, limit), min(available, max(0, limit - used + _file_cache(folder)))
    return Memory(total, available, swap)


def _cgroup(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those around it; in a container often only the outermost."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):  # version 2, or this controller of version 1
            root = cgroups / controller if controllers else cgroups
            inner = root / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _cpu_quota(folder: Path) -> float | None:
    """Cores that a control group may keep busy; None: no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = (str(_number(folder / f"cpu.cfs_{name}_us") or "max") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _file_cache(folder: Path) -> int:
    """Bytes of files that a control group's memory holds, which the system gives up for new allocations."""
    kept = _fields(folder / "memory.stat")
    return sum(kept.get(f"total_{name}", kept.get(name, 0)) for name in ("active_file", "inactive_file"))


def _fields(path: Path) -> dict[str, int]:
    """The lines `name number …` of a file, by name; empty if there is none."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def _number(path: Path) -> int | None:
    """The whole number in a file; None for a word such as `max`, a negative number, or no file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
