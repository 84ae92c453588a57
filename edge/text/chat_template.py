"""Renders a conversation into a prompt with the chat template of the model file.

A process of its own renders (edge/text/template_process.py); it is started again after a template had to be stopped.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from common.errors import EngineError, RequestError, StartError
from common.protocol.openai import Message
from edge.text.conversation import Conversation, WrittenPrompt

RENDER_SECONDS = 2.0
"""Processor time allowed for one rendering, which takes about a millisecond."""
LOST_SECONDS = 30.0
"""After this long by the clock, the process is lost: it may be stopped."""
FRAME_LIMIT = 16 * 2**20
"""The most bytes of a rendered prompt."""
PROGRAM = Path(__file__).parent / "template_process.py"


class ChatTemplate:
    """A model's template, from `start` to `close`; `bos` and `eos` are the texts of its special tokens, or empty."""

    def __init__(self, source: str, bos: str, eos: str, seconds: float = RENDER_SECONDS) -> None:
        self.source = source
        """The template itself, in Jinja."""
        self._first = {"source": source, "bos": bos, "eos": eos}
        self._seconds = seconds
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Raises StartError if the template is not valid Jinja, or cannot be compiled within the limits."""
        try:
            await self._begin()
        except _Failed as failure:
            await self.close()
            raise StartError(f"the model's chat template cannot be used: {failure}") from failure

    async def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            process, self._process = self._process, None
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt's text for messages alone; see `write`."""
        return await self.write(Conversation(messages), add_generation_prompt)

    async def prompt(self, conversation: Conversation, add_generation_prompt: bool = True) -> WrittenPrompt:
        """The prompt, with the template that wrote it; see `write`."""
        return WrittenPrompt(await self.write(conversation, add_generation_prompt), self.source)

    async def write(self, conversation: Conversation, add_generation_prompt: bool = True) -> str:
        """The prompt's text.

        Raises RequestError if the template refuses the conversation or does not end in time, EngineError if its process
        is lost.
        """
        try:
            frame = conversation.frame(self.source) | {"add_generation_prompt": add_generation_prompt}
            async with self._turn:
                if self._process is None:
                    await self._begin()
                return await self._ask(frame)
        except RecursionError as error:  # in tools or variables; messages hold text
            raise RequestError("nested too deeply", param="tools") from error
        except _Failed as failure:
            raise RequestError(f"the model's chat template refuses these messages: {failure}", "messages") from failure

    async def _begin(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(PROGRAM), str(self._seconds), stdin=PIPE, stdout=PIPE
        )
        await self._ask(self._first)

    async def _ask(self, question: dict[str, Any]) -> str:
        """Sends one frame and receives one; ends the process if that fails or is cancelled half way."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        frame, complete = msgspec.json.encode(question), False
        try:
            async with asyncio.timeout(LOST_SECONDS):
                self._process.stdin.write(len(frame).to_bytes(4, "big") + frame)
                size = int.from_bytes(await self._process.stdout.readexactly(4), "big")
                if size > FRAME_LIMIT:
                    raise _Failed("its process sent an invalid frame")
                answer = msgspec.json.decode(await self._process.stdout.readexactly(size), type=dict[str, str])
            complete = True
        except TimeoutError as error:
            raise EngineError(f"the process of the chat template has not answered for {LOST_SECONDS:g} s") from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _Failed(self._why(await self._process.wait())) from error
        finally:
            if not complete:
                await self.close()
        if "error" in answer:
            raise _Failed(answer["error"])
        return answer["text"]

    def _why(self, code: int) -> str:
        return f"no end in {self._seconds:g} s" if code == -signal.SIGPROF else f"its process ended with code {code}"


class _Failed(Exception):
    """The template could not be compiled or rendered; the message says why."""
