"""Recognizes what must not be sent to a cloud, by the patterns of the config, within a limit of time.

A regular expression may backtrack for longer than anyone waits, and Python holds the interpreter's lock meanwhile: no
other request would be answered. So a process of its own searches (common/cloud_client/pattern_process.py); it is
started again after a search had to be stopped.
"""

import asyncio
import json
import logging
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from common.fair_queue import Turns

log = logging.getLogger(__name__)

SEARCH_SECONDS = 0.5
"""Processor time for one prompt, whose search takes less than a millisecond."""
LOST_SECONDS = 30.0
"""After this long by the clock, the process is lost: it may be stopped."""
PROGRAM = Path(__file__).parent / "pattern_process.py"
NOTHING = b"0"
"""The reply where no pattern matches."""
MEDIA = re.compile(r"data:[\w.+/;=-]*;base64,[A-Za-z0-9+/=]*")
"""An image or a sound as text, in which words are found by chance only."""


class PrivatePart(NamedTuple):
    """A part of a text that a pattern finds; `kind`: the name of the pattern's group, or PRIVATE."""

    start: int
    end: int
    kind: str


def texts_of(value: object) -> list[str]:
    """All texts in a body, in order and at any depth, with the names in its objects, but without media."""
    return [part for part in _parts(value) if isinstance(part, str) and not MEDIA.fullmatch(part)]


def numbers_of(value: object) -> list[str]:
    """All numbers in a body, as JSON writes them."""
    parts = (part for part in _parts(value) if isinstance(part, int | float) and not isinstance(part, bool))
    return [json.dumps(part) for part in parts]


def has_token_ids(value: object) -> bool:
    """Whether a body has a list of numbers somewhere, which may be a text that no search sees."""
    lists = (part for part in _parts(value) if isinstance(part, list))
    return any(isinstance(item, int) for part in lists for item in part)


def _parts(value: object) -> Iterator[object]:
    """`value` and all that is in it; of structs the values only: their names are the API's."""
    pending = [value]
    while pending:
        yield (part := pending.pop())
        match part:
            case dict():
                pending += reversed([each for item in part.items() for each in item])
            case list() | tuple():
                pending += reversed(part)
            case msgspec.Struct():
                pending += reversed(msgspec.structs.astuple(part))


class PrivatePatterns:
    """Searches from the first `match` to `close`, or in `async with`; one prompt at a time, by turns of the tenants."""

    def __init__(self, patterns: Sequence[str], seconds: float = SEARCH_SECONDS) -> None:
        self._patterns = list(patterns)
        self._seconds = seconds
        self._process: Process | None = None
        self._turns = Turns(1)

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
        """Whether a pattern matches somewhere in `prompt`, as it is or with its escapes of JSON read.

        True, too, where that could not be told in time.
        """
        return bool(self._patterns) and await self._reply("?" + prompt) != NOTHING

    async def find(self, texts: Sequence[str]) -> list[list[PrivatePart]] | None:
        """The private parts of each text, in order; None where they cannot be told in time, or replaced."""
        data = await self._reply("*" + json.dumps(texts, ensure_ascii=False))
        return None if data is None else msgspec.json.decode(data, type=list[list[PrivatePart]] | None)

    async def _reply(self, question: str) -> bytes | None:
        """The process's reply; None if it was lost over this question."""
        await self._turns.take()
        complete = False
        try:
            async with asyncio.timeout(LOST_SECONDS):
                reply = await self._search(question)
            complete = True
            return reply
        except (OSError, EOFError, TimeoutError):
            log.warning("a prompt counts as private: no pattern was found or excluded in %g s", self._seconds)
            return None
        finally:
            try:
                if not complete:
                    await self.close()
            finally:
                self._turns.free()

    async def _search(self, question: str) -> bytes:
        if self._process is None:
            arguments = (sys.executable, "-I", str(PROGRAM), str(self._seconds))
            self._process = await asyncio.create_subprocess_exec(*arguments, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
            self._send(json.dumps(self._patterns))
        self._send(question)
        assert self._process.stdout is not None
        size = await self._process.stdout.readexactly(4)
        return await self._process.stdout.readexactly(int.from_bytes(size, "big"))

    def _send(self, text: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        data = text.encode(errors="surrogatepass")
        self._process.stdin.write(len(data).to_bytes(4, "big") + data)
