"""Renders chat templates in a process of its own, which may be killed. Knows only the standard library and Jinja.

A template comes with a model file and may hold anything: a loop without end, a string without measure. So it runs in
Jinja's sandbox, and the process around it has a limit on memory, which the template fails at, and on the processor time
of each rendering, which ends the process. Frames on stdin and stdout are a length in 4 bytes, then JSON.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any, BinaryIO

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

FRAME_LIMIT = 16 * 2**20
"""Bytes of the longest conversation and of the longest prompt."""
MEMORY_LIMIT = 512 * 2**20
REFUSALS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, MemoryError, RecursionError)
"""What a template may fail with by its own doing."""


def compiled(source: str, bos: str, eos: str) -> Template:
    """The template in the environment that Hugging Face templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals |= {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
    return environment.from_string(source)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Jinja's own filter would escape for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _read(pipe: BinaryIO) -> dict[str, Any] | None:
    """The next frame; None when the other side is gone."""
    size = int.from_bytes(pipe.read(4), "big")
    return json.loads(pipe.read(size)) if size else None


def _answer(template: Template | None, frame: dict[str, Any]) -> tuple[Template | None, bytes]:
    """The template, which the first frame brings, and what is said to this frame: a text, or an error."""
    try:
        if template is None:
            template, text = compiled(**frame), ""
        else:
            text = template.render(**frame)
        said = json.dumps({"text": text}, ensure_ascii=False).encode()
        if len(said) > FRAME_LIMIT:
            raise ValueError(f"the prompt is longer than {FRAME_LIMIT} bytes")
    except TemplateSyntaxError as error:
        said = json.dumps({"error": f"line {error.lineno}: {error.message}"}).encode()
    except REFUSALS as error:
        said = json.dumps({"error": str(error) or type(error).__name__}, ensure_ascii=False).encode(errors="replace")
    return template, said


def main(seconds: float) -> None:
    """First frame: the template and its special tokens; each further one a conversation. `seconds` are for each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches us too; our owner ends us
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    template: Template | None = None
    while (frame := _read(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process, whatever it is doing
        template, said = _answer(template, frame)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(len(said).to_bytes(4, "big") + said)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]))
