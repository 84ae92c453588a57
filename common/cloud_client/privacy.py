"""Recognizes prompts that must not be sent to a cloud, by the patterns of the config, within a limit of time.

A regular expression may backtrack for longer than anyone waits, and Python holds the interpreter's lock meanwhile: no
other request would be answered. So a process of its own searches (common/cloud_client/pattern_process.py); it is
started again after a search had to be stopped.
"""

import asyncio
import json
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Self

log = logging.getLogger(__name__)

SEARCH_SECONDS = 0.5
"""Processor time for one prompt, whose search takes less than a millisecond."""
LOST_SECONDS = 30.0
"""After this long by the clock, the process is lost: it may be stopped."""
PROGRAM = Path(__file__).parent / "pattern_process.py"
FOUND = b"1"


class PrivatePatterns:
    """Searches from the first `match` to `close`, or in `async with`; one prompt at a time."""

    def __init__(self, patterns: Sequence[str], seconds: float = SEARCH_SECONDS) -> None:
        self._patterns = list(patterns)
        self._seconds = seconds
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            process, self._process = self._process, None
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def match(self, prompt: str) -> bool:
        """Whether a pattern matches somewhere in `prompt`; True, too, where that could not be told in time."""
        if not self._patterns:
            return False
        async with self._turn:
            complete = False
            try:
                async with asyncio.timeout(LOST_SECONDS):
                    found = await self._search(prompt)
                complete = True
                return found
            except (OSError, EOFError, TimeoutError):
                log.warning("a prompt counts as private: no pattern was found or excluded in %g s", self._seconds)
                return True
            finally:
                if not complete:
                    await self.close()

    async def _search(self, prompt: str) -> bool:
        if self._process is None:
            arguments = (sys.executable, "-I", str(PROGRAM), str(self._seconds))
            self._process = await asyncio.create_subprocess_exec(*arguments, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
            self._send(json.dumps(self._patterns))
        self._send(prompt)
        assert self._process.stdout is not None
        return await self._process.stdout.readexactly(1) == FOUND

    def _send(self, text: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        data = text.encode(errors="surrogatepass")
        self._process.stdin.write(len(data).to_bytes(4, "big") + data)
