"""Runs a generated program in processes of its own, with limits, and says whether it ran to its end.

It protects against accidents of generated code: loops, processes, files, memory, network, early exits. It is not made
against an attacker: whoever writes a program for the purpose can get out, for example through ctypes.

- Time: a limit of processor time and one of time on the clock. Memory: of each process (RLIMIT_AS).
- Files: no file can be opened for writing, removed, or renamed (an audit hook), none can grow (RLIMIT_FSIZE). The
  working folder is empty and is removed afterwards.
- Processes and network: Python's functions refuse them (the same hook). Where the kernel allows it, the program has
  user, process and network namespaces of its own: no network at all, and all its processes end with the first.
  Everywhere the outer process adopts all descendants, also daemons, and ends them.
- Nothing of this machine's environment is visible; the input is empty, the output is thrown away.

An exit code says nothing, as a program can end before its tests: the verdict is a secret that is sent after them.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct

CHILD = Path(__file__).with_name("sandbox_child.py")
SPARE_SECONDS = 30.0
"""For the start of the interpreter and the end of the processes, on a machine that is busy."""


class SandboxLimits(Struct, frozen=True):
    """Seconds of processor time and on the clock; bytes of each process. `namespaces`: where the kernel has them."""

    cpu_seconds: int = 5
    wall_seconds: float = 20.0
    memory_bytes: int = 512 << 20
    namespaces: bool = True


USUAL = SandboxLimits()


class ProgramVerdict(Struct, frozen=True):
    """Whether a program ran to its end, and if not, why."""

    passed: bool
    reason: str


def job(program: str, limits: SandboxLimits) -> bytes:
    """What the outer process reads from its input."""
    return msgspec.json.encode(
        {
            "program": program,
            "cpu_seconds": limits.cpu_seconds,
            "wall_seconds": limits.wall_seconds,
            "memory_bytes": limits.memory_bytes,
            "namespaces": limits.namespaces,
        }
    )


def run(program: str, limits: SandboxLimits = USUAL) -> ProgramVerdict:
    """Runs a program to its end or to a limit. All its processes have ended, and its files are gone, on return."""
    with tempfile.TemporaryDirectory(prefix="answer-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-B", str(CHILD)],  # only the standard library, and no caches written
                input=job(program, limits),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                timeout=limits.wall_seconds + SPARE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return ProgramVerdict(False, "out of time")
    reason = done.stdout.decode(errors="replace").strip()
    return ProgramVerdict(reason == "passed", reason or "ended without a verdict")
