"""Renders chat templates in a process of its own, which may be killed. Imports only the standard library and Jinja.

A template comes with a model file and may contain anything: an endless loop, an enormous string. So it runs in Jinja's
sandbox, in a process with limits: exceeding the memory limit fails the template, exceeding the processor time of one
rendering ends the process. A frame on stdin or stdout is a length in 4 bytes (big-endian), then JSON.
"""

import json
import resource
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

FRAME_LIMIT = 16 * 2**20
"""The most bytes of a conversation or of a prompt."""
MEMORY_LIMIT = 512 * 2**20
"""Bytes of address space."""
REFUSALS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, MemoryError, RecursionError)
"""The exceptions that a faulty template may raise."""


class GenerationBlock(Extension):
    """The block `generation` marks an assistant's turn for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def compiled(source: str, bos: str, eos: str) -> Template:
    """The template in the environment that Hugging Face templates are written for, with llama.cpp's additions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlock]
    )
    environment.filters.update(tojson=_to_json, from_json=json.loads)
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals |= {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replaces Jinja's filter, which escapes for HTML; no model was trained on that."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_listed
    )


def _listed(value: Any) -> list[Any]:
    """What a filter like `map` returns, as JSON can show it."""
    if not isinstance(value, Iterator):
        raise TypeError(f"{type(value).__name__} is not JSON")
    return list(value)


class Arguments(dict[str, Any]):
    """A call's arguments: an object for templates that look into it, the client's own JSON for those that want text."""

    def __init__(self, text: str) -> None:
        super().__init__(json.loads(text or "{}"))
        self._text = text or "{}"

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def _with_arguments(frame: dict[str, Any]) -> dict[str, Any]:
    for message in frame["messages"]:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = Arguments(call["function"]["arguments"])
    return frame


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _read(pipe: BinaryIO) -> dict[str, Any] | None:
    """The next frame; None when the pipe is closed."""
    size = int.from_bytes(pipe.read(4), "big")
    return json.loads(pipe.read(size)) if size else None


def _answer(template: Template | None, frame: dict[str, Any]) -> tuple[Template | None, bytes]:
    """The template, compiled from the first frame, and the reply to this frame: a text or an error."""
    try:
        if template is None:
            template, text = compiled(**frame), ""
        else:
            text = template.render(_with_arguments(frame))
        answer = json.dumps({"text": text}, ensure_ascii=False).encode()
        if len(answer) > FRAME_LIMIT:
            raise ValueError(f"the prompt is longer than {FRAME_LIMIT} bytes")
    except TemplateSyntaxError as error:
        answer = json.dumps({"error": f"line {error.lineno}: {error.message}"}).encode()
    except REFUSALS as error:
        answer = json.dumps({"error": str(error) or type(error).__name__}, ensure_ascii=False).encode(errors="replace")
    return template, answer


def main(seconds: float) -> None:
    """Serves frames: first the template with its special tokens, then conversations, `seconds` of CPU time for each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches this process too; its owner ends it
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    template: Template | None = None
    while (frame := _read(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process even in an endless loop
        template, answer = _answer(template, frame)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(len(answer).to_bytes(4, "big") + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
