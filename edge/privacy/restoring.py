"""Puts private words back in an answer, in place of their placeholders, as its text arrives."""

import json
import re
from collections.abc import Sequence

from common.grammar.spec import GrammarKind
from common.protocol.openai import GenerationRequest
from edge.privacy.redaction import Secrets, mapped_arguments
from edge.text import markers
from edge.tool_calls.parts import Part, Said, Thought, ToolCall


def restored(text: str, secrets: Secrets, in_json: bool = False) -> str:
    """`in_json`: the text is JSON, in whose strings some characters are escaped."""
    if not secrets:
        return text
    words = "|".join(map(re.escape, secrets))
    return re.sub(words, lambda hit: _escaped(secrets[hit[0]]) if in_json else secrets[hit[0]], text)


def _escaped(secret: str) -> str:
    return json.dumps(secret, ensure_ascii=False)[1:-1]


def answers_in_json(body: GenerationRequest) -> bool:
    """Whether what an answer says is JSON."""
    own = body.response_format is not None and body.response_format.grammar is not None
    outputs = body.structured_outputs or body.guided
    return own or (outputs is not None and outputs.spec.kind is GrammarKind.JSON)


class RestoredText:
    """One text: `feed` its pieces, then `end`. What may be the beginning of a placeholder is held back."""

    def __init__(self, secrets: Secrets, in_json: bool = False) -> None:
        self._secrets = secrets
        self._in_json = in_json
        self._held = ""

    def feed(self, text: str) -> str:
        text = self._held + text
        safe = len(text) - markers.unfinished(text, self._secrets)
        self._held = text[safe:]
        return restored(text[:safe], self._secrets, self._in_json)

    def end(self) -> str:
        held, self._held = self._held, ""
        return held


class RestoredParts:
    """One answer's parts: `take` them as they arrive, then `end`. Calls are restored in the strings of their arguments.

    `in_json`: what is said is JSON.
    """

    def __init__(self, secrets: Secrets, in_json: bool = False) -> None:
        self._secrets = secrets
        self._in_json = in_json
        self._kind: type[Said | Thought] = Said
        self._text = RestoredText(secrets, in_json)

    def take(self, parts: Sequence[Part]) -> list[Part]:
        if not self._secrets:
            return list(parts)
        made = list[Part]()
        for part in parts:
            if isinstance(part, ToolCall):
                arguments = mapped_arguments(part.arguments, lambda text: restored(text, self._secrets))
                made += [*self.end(), part._replace(arguments=arguments)]
                continue
            if type(part) is not self._kind:
                made += self.end()
                self._kind = type(part)
                self._text = RestoredText(self._secrets, self._in_json and self._kind is Said)
            if text := self._text.feed(part.text):
                made.append(self._kind(text))
        return made

    def end(self) -> list[Part]:
        """What was held back, when the answer has ended."""
        return [self._kind(text)] if (text := self._text.end()) else []
