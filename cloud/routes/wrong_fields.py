"""Finds the field of a body that pydantic's errors mean, and names it by its JSON path."""

from collections.abc import Sequence
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from common.errors import RequestError

WORDS = "Input should be "
"""How pydantic begins to tell the words that are allowed, in quotes."""
KINDS = ("role", "type")
"""Fields whose word says which member of a union an object is."""


def refusal(error: ValidationError, body: dict[str, Any], *field: str | int) -> RequestError:
    """Names the wrong field; `field`: where in the body what was checked lies.

    Of a union, pydantic says of every member why the value is none: what the value does not want to be is left out, and
    the deepest of the others is likeliest what is wrong.
    """
    found = [(_path(body, [*field, *one["loc"]], one["type"]), one["msg"]) for one in _likely(error.errors())]
    inside = [one for one in found if one[0] and one[0][0] in body]
    path, message = max(inside, key=lambda one: len(one[0]), default=found[0])
    if message.startswith(WORDS + "'"):  # each member of a union has its own
        words = [said.removeprefix(WORDS) for place, said in found if place == path and said.startswith(WORDS + "'")]
        message = f"{WORDS}{', '.join(dict.fromkeys(words))}"
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    return RequestError(f"{name}: {message}" if name else message, param=name or None)


def _likely(errors: Sequence[ErrorDetails]) -> Sequence[ErrorDetails]:
    """Without those of members of a union that the value's own role or type rules out; where it rules out all, only
    that is wrong."""
    words = {one["loc"][:-1]: one for one in errors if one["type"] == "literal_error" and one["loc"][-1:][0] in KINDS}
    left = [one for one in errors if not any(one["loc"][:end] in words for end in range(len(one["loc"])))]
    unions = {one["loc"][:end] for one in left for end in range(len(one["loc"]))}
    return [*left, *(word for member, word in words.items() if member[:-1] not in unions)]


def _path(body: dict[str, Any], steps: Sequence[str | int], kind: str) -> list[str | int]:
    """The steps that lead through the body: not pydantic's names of members of unions, types and validators."""
    path, value = list[str | int](), cast(Any, body)
    for at, step in enumerate(steps):
        missing = kind == "missing" and at == len(steps) - 1
        if isinstance(value, dict) and (step in value or missing):
            path.append(step)
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path.append(step)
            value = value[step]
    return path
