"""The processes of the sandbox: the outer one waits and ends everything, the inner one runs the program.

    python -I -S -B sandbox_child.py < job.json

It prints "passed", or why not. It imports only the standard library, as nothing else is visible to it.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
import types
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NAMESPACES = 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET."""
MAX_PROCESSES, MAX_FILES, MAX_REASON = 64, 64, 200
TICK_SECONDS = 0.05
"""Between two looks at whether the inner process still runs."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = (
    "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "os.kill", "subprocess.", "pty.",
    "socket.", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
    "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "shutil.", "tempfile.", "sqlite3.", "syslog.",
)  # fmt: skip
"""Beginnings of the names of audit events."""


class _OutOfTime(BaseException):
    """No program catches it by accident with `except Exception`."""


def main() -> None:
    job = json.load(sys.stdin)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if job["namespaces"]:
        libc.unshare(NAMESPACES)  # where the kernel refuses, the other limits have to do
    secret = os.urandom(16).hex().encode()
    here, there = os.pipe()
    inner = os.fork()
    if not inner:
        os.close(here)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _run(job, there, secret)
    os.close(there)
    reason = _verdict(here, inner, secret, job["wall_seconds"])
    _end_all()
    print(reason)


def _verdict(here: int, inner: int, secret: bytes, seconds: float) -> str:
    """Waits for the line that begins with the secret, for the end of the inner process, or for the limit."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([here], [], [], TICK_SECONDS)[0]:
            line = os.read(here, 4096)
            right = line.startswith(secret)
            return line.removeprefix(secret).decode(errors="replace") if right else "ended before its tests"
        if os.waitpid(inner, os.WNOHANG)[0]:
            return "ended before its tests"
    return "out of time"


def _end_all() -> None:
    """Kills and reaps all descendants: those whose parent has ended belong to this process, also daemons."""
    while True:
        try:
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
        except ProcessLookupError:
            continue


def _children() -> list[int]:
    me, found = os.getpid(), []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended meanwhile
            if parent == me:
                found.append(int(name))
    return found


def _run(job: dict[str, Any], there: int, secret: bytes) -> NoReturn:
    """Runs the program as a module and sends the secret and the verdict; never returns."""
    write, leave = os.write, os._exit  # the program may overwrite them
    try:
        _confine(job["cpu_seconds"], job["memory_bytes"])
        module = types.ModuleType("answer")
        sys.modules["answer"] = module
        code = compile(job["program"], "answer.py", "exec")
        sys.addaudithook(_refuse)
        exec(code, module.__dict__)
        reason = "passed"
    except _OutOfTime:
        reason = "out of time"
    except BaseException as error:
        reason = _reason(error)
    write(there, secret + reason.encode(errors="replace"))
    leave(0)


def _reason(error: BaseException) -> str:
    """An error in one line, also one whose text is an error itself."""
    try:
        return f"{type(error).__name__}: {str(error)[:MAX_REASON]}".replace("\n", " ")
    except BaseException:
        return type(error).__name__


def _confine(cpu: int, memory: int) -> None:
    """Detaches input, output and terminal, and sets all limits of this process, which its children inherit."""
    os.setsid()
    for call in ("mkfifo", "mknod"):  # which raise no audit event
        setattr(os, call, _make_no_file)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    signal.signal(signal.SIGXCPU, _out_of_time)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for kind, most in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_NPROC, MAX_PROCESSES),
    ):
        resource.setrlimit(kind, (most, most))


def _out_of_time(number: int, frame: object) -> None:
    raise _OutOfTime


def _make_no_file(*_: object, **__: object) -> NoReturn:
    raise PermissionError("a program may not make files")


def _refuse(event: str, details: tuple[Any, ...]) -> None:
    """The audit hook."""
    if event == "open":
        flags = details[2]
        if not isinstance(flags, int) or flags & WRITING:
            raise PermissionError(f"a program may not write files: {details[0]}")
    elif event.startswith(REFUSED):
        raise PermissionError(f"a program may not call {event}")


if __name__ == "__main__":
    main()
