"""Searches regular expressions in a process of its own, which may be killed. Imports only the standard library.

A frame on stdin is a length in 4 bytes (big-endian), then text: first the patterns as JSON, then prompts. The reply to
a prompt is one byte, 1 or 0. Exceeding the processor time of one search, or the memory, ends the process.
"""

import json
import re
import resource
import signal
import sys

MEMORY_LIMIT = 512 * 2**20
"""Bytes of address space."""


def _read() -> str | None:
    """The next frame's text; None when the pipe is closed."""
    size = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(int.from_bytes(size, "big")).decode(errors="surrogatepass") if size else None


def main(seconds: float) -> None:
    """Serves frames, with `seconds` of processor time for each prompt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches this process too; its owner ends it
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    patterns = [re.compile(pattern) for pattern in json.loads(_read() or "[]")]
    while (prompt := _read()) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process even within a search
        found = any(pattern.search(prompt) for pattern in patterns)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(b"1" if found else b"0")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
