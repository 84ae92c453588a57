"""Compiles grammars for one vocabulary: each once, off the event loop, with limits of size, time and work a token."""

import asyncio
import functools
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from common.errors import EngineError, GrammarError, OverloadedError
from common.grammar.lark import lark_of
from common.grammar.spec import GrammarSpec

LIMITS: dict[str, Any] = {"max_lexer_states": 50_000, "max_grammar_size": 200_000, "verbose_errors": False}
"""Of memory (2 kB for each state) and size; llguidance's own ones bound the work for one token to about 15 ms."""
PARSER_LIMITS = LLParserLimits(**LIMITS)
COMPILE_SECONDS = 2.0
"""Processor time for one grammar, which takes a few milliseconds."""
MAX_COMPILED = 32
MAX_WAITING = 16
"""Grammars that are being compiled, or wait for it."""
PROGRAM = Path(__file__).parent / "compile_process.py"


class GrammarCompiler:
    """Used in one event loop, until `close`; `find` and `forget` also in other threads.

    `make_tokenizer` is called once, in the compiler's thread "grammar"; it may raise ValueError for a vocabulary that
    llguidance cannot read, and then all grammars are refused.
    """

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._compiled: OrderedDict[GrammarSpec, LLMatcher | GrammarError] = OrderedDict()
        self._tasks: dict[GrammarSpec, asyncio.Task[None]] = {}
        self._waiting: dict[GrammarSpec, int] = {}
        self._turn = asyncio.Lock()
        self._closed = False

    async def prepare(self) -> None:
        """Reads the vocabulary: 1 s for 150,000 tokens, half of it with the interpreter's lock; so at the start."""
        with suppress(GrammarError):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._read_vocabulary)

    async def close(self) -> None:
        """Stops what is being compiled."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)  # after what it still compiles
            self._thread.shutdown()

    async def compile(self, spec: GrammarSpec) -> LLMatcher:
        """The grammar at its start, to be copied for each answer; it is compiled by the first of those who ask.

        Raises GrammarError that names the fault or the limit, OverloadedError if many others wait. Compiling ends when
        all who wait for it have been cancelled.
        """
        while (found := self._compiled.get(spec)) is None:
            await self._wait(spec)
        if isinstance(found, GrammarError):
            raise GrammarError(found.message, found.param)
        self._compiled.move_to_end(spec)
        return found

    def find(self, spec: GrammarSpec) -> LLMatcher | None:
        """The grammar at its start, if it is compiled."""
        found = self._compiled.get(spec)
        return None if isinstance(found, GrammarError) else found

    def forget(self, spec: GrammarSpec) -> None:
        """Drops a grammar that has reached a limit: its copies share the states of one lexer."""
        self._compiled.pop(spec, None)

    async def _wait(self, spec: GrammarSpec) -> None:
        if spec not in self._tasks:
            if len(self._tasks) >= MAX_WAITING:
                raise OverloadedError(f"{MAX_WAITING} grammars wait to be compiled", param=spec.param)
            self._tasks[spec] = asyncio.create_task(self._compile(spec))
        task = self._tasks[spec]
        self._waiting[spec] = self._waiting.get(spec, 0) + 1
        try:
            await asyncio.shield(task)
        finally:
            self._waiting[spec] -= 1
            if not self._waiting[spec]:
                del self._waiting[spec], self._tasks[spec]
                task.cancel()

    async def _compile(self, spec: GrammarSpec) -> None:
        async with self._turn:
            self._compiled[spec] = await self._result(spec)
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)

    async def _result(self, spec: GrammarSpec) -> LLMatcher | GrammarError:
        in_thread = functools.partial(asyncio.get_running_loop().run_in_executor, self._thread)
        try:
            text = await in_thread(lark_of, spec)
            fault = await _trial(text)
            if not fault:
                matcher = await in_thread(self._matcher, text)
                fault = matcher.get_error()
                if not fault:
                    return matcher
        except GrammarError as error:
            return error
        return GrammarError(f"{spec.noun} cannot be enforced: {_reason(fault)}", param=spec.param)

    def _matcher(self, text: str) -> LLMatcher:
        matcher = LLMatcher(self._read_vocabulary(), text, log_level=0, limits=PARSER_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # may exceed a limit, and copies start with what it has found out
        return matcher

    def _read_vocabulary(self) -> LLTokenizer:
        try:
            self._tokenizer = self._tokenizer or self._make_tokenizer()
        except ValueError as error:
            raise GrammarError(f"no grammar can be enforced with this model's vocabulary: {error}") from error
        return self._tokenizer


async def _trial(text: str) -> str:
    """Why the grammar is refused in the process that tries it; empty if it is not."""
    command = (sys.executable, "-I", str(PROGRAM), str(COMPILE_SECONDS))
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
    except OSError as error:
        raise EngineError(f"no process could be started to compile a grammar: {error.strerror}") from error
    try:
        fault, _ = await process.communicate(json.dumps({"text": text, "limits": LIMITS}).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        return f"compiling it takes more than {COMPILE_SECONDS:g} s of processor time, or too much memory"
    return fault.decode()


def _reason(fault: str) -> str:
    """llguidance's message in one line, without the excerpt of the grammar that it was given."""
    message, _, _ = fault.removeprefix("at 2(8): failed to compile JSON schema: ").partition("\n   1 | ")
    message = message.replace("regex parse error:", "pattern:").replace("<non-verbose/>", "")
    return " ".join(word for word in message.split() if word.strip("^"))[:300]
