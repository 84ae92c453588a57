"""Renders a conversation into a prompt with the chat template that the GGUF carries. Knows no tokens.

The environment is the one that Hugging Face templates are written for; it is sandboxed, because a template comes
with a model file and may hold anything.
"""

import json
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.api import Message
from common.errors import RequestError, StartError


class ChatTemplate:
    """A compiled template; `bos` and `eos` are the texts of the model's special tokens, empty where it has none.

    Raises StartError if `source` is not valid Jinja.
    """

    def __init__(self, source: str, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.globals |= {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise StartError(f"the model's chat template, line {error.lineno}: {error.message}") from error

    def render(self, messages: list[Message], add_generation_prompt: bool = True) -> str:
        """The prompt's text; raises RequestError when the template refuses the conversation."""
        if not messages:
            raise RequestError("messages must not be empty", param="messages")
        turns = [_turn(message) for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=add_generation_prompt)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise RequestError(f"the model's chat template refuses these messages: {error}", "messages") from error


def _turn(message: Message) -> dict[str, str]:
    turn = {"role": message.role, "content": message.text}
    return turn if message.name is None else turn | {"name": message.name}


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Jinja's own filter would escape for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
