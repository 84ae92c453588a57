"""Puts private words back in what a cloud answers to a whole request: in its reply, or in its events as they come."""

from collections.abc import Callable
from typing import Any

from edge.privacy.redaction import Secrets, mapped_arguments
from edge.privacy.restoring import RestoredText, restored

Choice = dict[str, Any]
IN_JSON = ("function", "arguments")
"""The path of a call's arguments, which a stream brings in pieces of JSON."""


SAID = ("content", "text")
"""The names of what an answer says, which may be JSON, too."""


def restored_reply(value: Any, secrets: Secrets, in_json: bool = False) -> Any:
    """A whole reply with the words in all of its texts; `in_json`: what it says is JSON."""
    escaped = _also_escaped(secrets)

    def change(text: str, name: str) -> str:
        if name == "arguments":
            return mapped_arguments(text, lambda one: restored(one, secrets))
        return restored(text, escaped, in_json=True) if in_json and name in SAID else restored(text, secrets)

    return _mapped(value, change) if secrets else value


def _mapped(value: Any, change: Callable[[str, str], str], name: str = "") -> Any:
    match value:
        case str():
            return change(value, name)
        case list():
            return [_mapped(one, change) for one in value]
        case dict():
            return {key: _mapped(one, change, key) for key, one in value.items()}
    return value


def _also_escaped(secrets: Secrets) -> Secrets:
    """With the placeholders, too, as some servers write them in JSON."""
    escaped = {word.replace("<", r"\u003c").replace(">", r"\u003e"): secret for word, secret in secrets.items()}
    return {**secrets, **escaped}


class RestoredEvents:
    """One stream: each choice of an event goes through `take`. Every text of an answer is held back by itself.

    `in_json`: what is said is JSON.
    """

    def __init__(self, secrets: Secrets, in_json: bool = False) -> None:
        self._secrets = secrets
        self._escaped = _also_escaped(secrets)
        self._says_json = in_json
        self._texts: dict[tuple[object, ...], RestoredText] = {}

    def take(self, choice: Choice) -> Choice:
        """The choice with the words in it; the one that ends an answer has what was held back."""
        if not self._secrets:
            return choice
        place = (choice.get("index", 0),)
        choice = self._fed(choice, place)
        return choice if choice.get("finish_reason") is None else self._ended(choice, place)

    def _fed(self, value: Any, place: tuple[object, ...]) -> Any:
        match value:
            case str() if place[-1] in ("id", "type", "role", "name", "finish_reason", "stop_reason"):
                return value
            case str():
                return self._text(place).feed(value)
            case list():
                return [self._fed(one, (*place, _number(one, at))) for at, one in enumerate(value)]
            case dict():
                return {key: self._fed(one, (*place, key)) for key, one in value.items()}
        return value

    def _text(self, place: tuple[object, ...]) -> RestoredText:
        in_json = place[-2:] == IN_JSON or (self._says_json and place[-1] in SAID)
        return self._texts.setdefault(place, RestoredText(self._escaped if in_json else self._secrets, in_json))

    def _ended(self, choice: Choice, place: tuple[object, ...]) -> Choice:
        for path in [path for path in self._texts if path[:1] == place]:
            if held := self._texts.pop(path).end():
                _add(choice, path[1:], held)
        return choice


def _number(value: object, at: int) -> object:
    """Of a call among those of a delta, which name their places in the whole list."""
    return value.get("index", at) if isinstance(value, dict) else at


def _add(container: Any, path: tuple[object, ...], text: str) -> None:
    """Adds `text` to the text at `path`, where `_number` counts in lists; what lacks on the way is made."""
    name, *rest = path
    if not rest:
        container[name] = (container.get(name) or "") + text
        return
    if isinstance(rest[0], int):
        calls = container.get(name)
        if not isinstance(calls, list):
            calls = container[name] = []
        call = next((one for at, one in enumerate(calls) if _number(one, at) == rest[0]), None)
        if call is None:
            calls.append(call := {"index": rest[0]})
        _add(call, tuple(rest[1:]), text)
        return
    if not isinstance(container.get(name), dict):
        container[name] = {}
    _add(container[name], tuple(rest), text)
