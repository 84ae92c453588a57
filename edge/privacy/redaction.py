"""Replaces private words of a request by placeholders; what stands for what is kept for its answer.

Whoever sends the result searches it again: words in names and numbers are not replaced, nor is all that is escaped, nor
anything where the search takes too long or finds too much.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from common.cloud_client.pattern_process import readings
from common.cloud_client.privacy import MEDIA, PrivatePart, PrivatePatterns, numbers_of, texts_of
from common.protocol.openai import ChatRequest, GenerationRequest

Secrets = Mapping[str, str]
"""Private words by their placeholders, such as `<EMAIL_1>`."""
NO_SECRETS: Secrets = {}
BODY = TypeVar("BODY", bound=GenerationRequest)

TEXTS = (
    *("messages", "tools", "prediction", "chat_template_kwargs", "prompt", "suffix", "stop"),
    *("response_format", "structured_outputs", "guided_json", "guided_choice"),
    *("input_prefix", "input_suffix", "input_extra"),
)
"""The fields of requests that hold texts."""
NAMES = frozenset(
    {*("model", "type", "role", "id", "tool_call_id", "name", "required", "$ref"), *("pattern", "regex", "grammar")}
)
"""What is under these is compared with other names, or is an expression: another word would change what it means."""
BRACKETED = re.compile(r"<\w+>", re.ASCII)
"""What may be a placeholder."""
ESCAPES = re.compile(r"((?:\\u[0-9a-fA-F]{4})+)|\\.", re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which no text that is sent or answered may have; the escapes of JSON may."""


async def redacted(body: BODY, patterns: PrivatePatterns) -> tuple[BODY, Secrets]:
    """The request without what the patterns find in its texts, and what it is answered with instead."""
    tree: dict[str, Any] = msgspec.to_builtins(body)
    texts = {name: tree[name] for name in TEXTS if tree.get(name) is not None}
    changed, secrets = await without_secrets(texts, patterns, taken=texts_of(tree))
    try:
        return (msgspec.convert(tree | changed, type(body)), secrets) if secrets else (body, NO_SECRETS)
    except msgspec.ValidationError:  # a field that takes no placeholder
        return body, NO_SECRETS


def texts_beside_prompt(body: GenerationRequest) -> list[str]:
    """What a cloud may be sent of a request beside the ids of its prompt."""
    parts: list[object] = [body.response_format, body.structured_outputs, body.guided]
    if isinstance(body, ChatRequest):
        parts += [body.messages, body.tools, body.template_variables, body.prediction]
    return [*texts_of(parts), *numbers_of(parts)]


async def still_private(text: str, secrets: Secrets, patterns: PrivatePatterns) -> bool:
    """Whether a text that is to be sent has a secret, or anything else that the patterns match but placeholders.

    Also where its escapes are read as what they stand for.
    """
    if not secrets:
        return await patterns.match(text)
    texts = await asyncio.to_thread(readings, text)
    placeholders = re.compile("|".join(map(re.escape, secrets)))
    rest = [placeholders.sub("\0", one) for one in texts]  # a secret as short as "1" is part of its own placeholder
    spellings = {*secrets.values(), *map(re.escape, secrets.values())}  # the latter in an expression
    if any(spelling in one for one in rest for spelling in spellings):
        return True
    parts = await patterns.find(texts)
    return parts is None or any(_exceeds(one, own, placeholders) for one, own in zip(texts, parts, strict=True))


def _exceeds(text: str, parts: Iterable[PrivatePart], placeholders: re.Pattern[str]) -> bool:
    """Whether some part has a character outside of the placeholders."""
    inside = bytearray(len(text))
    for hit in placeholders.finditer(text):
        inside[hit.start() : hit.end()] = b"\1" * len(hit[0])
    return any(inside.find(0, start, end) >= 0 for start, end, _ in parts)


async def without_secrets(
    tree: dict[str, Any], patterns: PrivatePatterns, taken: Collection[str]
) -> tuple[dict[str, Any], Secrets]:
    """The same for plain values; no text of `taken` has one of the placeholders."""
    plain: dict[str, str] = {}

    def collect(text: str) -> str:
        plain[text] = _unescaped(text)
        return text

    def replace(text: str) -> str:
        return text if table[plain[text]] == plain[text] else table[plain[text]]

    try:
        await asyncio.to_thread(_mapped, tree, collect)  # what is full of escapes takes long
        found = list(dict.fromkeys(plain.values()))
        parts = await patterns.find(found)
        if not parts or not any(parts) or await _cut(tree, patterns):
            return tree, NO_SECRETS
        placeholders = _placeholders(found, parts, [*taken, *found])
        if any(map(SURROGATE.search, placeholders)):
            return tree, NO_SECRETS
        table = {text: _replaced(text, own, placeholders) for text, own in zip(found, parts, strict=True)}
        return _mapped(tree, replace), {word: secret for secret, word in placeholders.items()}
    except RecursionError:
        return tree, NO_SECRETS


def message_parts(tree: Mapping[str, Any]) -> list[list[str]]:
    """Of each message of a chat whose content is in parts: their texts, which a template writes without a gap."""
    contents = [message.get("content") for message in tree.get("messages") or ()]
    return [[part.get("text") or "" for part in parts] for parts in contents if isinstance(parts, list)]


async def _cut(tree: Mapping[str, Any], patterns: PrivatePatterns) -> bool:
    """Whether a private word lies in several parts of a message, so that a part's replacement would leave the rest."""
    parts = message_parts(tree)
    found = await patterns.find(["".join(texts) for texts in parts]) if parts else []
    return found is None or any(
        start < border < end
        for hits, texts in zip(found, parts, strict=True)
        for start, end, _ in hits
        for border in accumulate(map(len, texts))
    )


def _unescaped(text: str) -> str:
    """JSON with its printable characters as they are, where it has `\\u0040` or such; quotes and backslashes stay."""

    def read(hit: re.Match[str]) -> str:
        plain = str(json.loads(f'"{hit[1]}"')) if hit[1] else ""
        return plain if plain and plain.isprintable() and not {*plain} & {'"', "\\"} else hit[0]

    return ESCAPES.sub(read, text)


def _placeholders(texts: Sequence[str], parts: Sequence[Sequence[PrivatePart]], taken: Iterable[str]) -> dict[str, str]:
    """By secret, numbered in order: a conversation that goes on has the same ones again, and the same KV."""
    used = {word for text in taken for word in BRACKETED.findall(text)}
    made, numbers = dict[str, str](), Counter[str]()
    for text, own in zip(texts, parts, strict=True):
        for start, end, kind in own:
            while text[start:end] not in made:
                numbers[kind] += 1
                if (word := f"<{kind}_{numbers[kind]}>") not in used:
                    made[text[start:end]] = word
    return made


def _replaced(text: str, parts: Sequence[PrivatePart], placeholders: Mapping[str, str]) -> str:
    made, place = list[str](), 0
    for start, end, _ in parts:
        made += [text[place:start], placeholders[text[start:end]]]
        place = end
    return "".join([*made, text[place:]])


def _mapped(value: Any, change: Callable[[str], str], name: str = "", names: Collection[str] = NAMES) -> Any:
    """`value` with each of its texts changed; `name`: of the field that holds it."""
    match value:
        case str() if name in names or MEDIA.fullmatch(value):
            return value
        case str():
            return mapped_arguments(value, change) if name == "arguments" else change(value)
        case list():
            return [_mapped(one, change, name, names) for one in value]
        case dict():
            return {key: _mapped(one, change, key, names) for key, one in value.items()}
    return value


def mapped_arguments(text: str, change: Callable[[str], str]) -> str:
    """The arguments of a call, a JSON object as text, with each of their texts changed."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return change(text)
    changed = _mapped(arguments, change, names=())
    if changed == arguments:
        return text
    made = json.dumps(changed, ensure_ascii=False)
    return json.dumps(changed) if SURROGATE.search(made) else made
