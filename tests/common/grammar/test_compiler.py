"""The compiler: each grammar once, off the loop, within limits; who leaves frees what was begun for him."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from llguidance import LLMatcher

from common.errors import GrammarError, OverloadedError
from common.grammar import compiler as module
from common.grammar.compiler import GrammarCompiler
from common.grammar.spec import GrammarKind, GrammarSpec
from tests.common.grammar.schemas import BYTES

SLOW = json.dumps({"type": "string", "allOf": [{"pattern": f"a.{{{n}}}b"} for n in range(3, 40)]})
"""llguidance takes minutes to compile it."""
LARGE = json.dumps({"type": "array", "minItems": 10**9})

REFERENCES = {str(n): {"items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(400)} | {"400": {}}
DEEP = json.dumps({"$ref": "#/$defs/0", "$defs": REFERENCES})
"""llguidance recurses for each reference: a thread with 2 MiB of stack would end with its process."""


def schema(text: str) -> GrammarSpec:
    return GrammarSpec(GrammarKind.JSON, text)


@pytest_asyncio.fixture
async def compiler() -> AsyncIterator[GrammarCompiler]:
    compiler = GrammarCompiler(lambda: BYTES)
    try:
        yield compiler
    finally:
        await compiler.close()


async def test_a_grammar_is_compiled_once_for_all_who_ask(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    trial = module._trial

    async def counted(text: str) -> str:
        tried.append(text)
        return await trial(text)

    monkeypatch.setattr(module, "_trial", counted)
    spec = schema('{"type":"boolean"}')
    found = await asyncio.gather(*(compiler.compile(spec) for _ in range(5)))
    assert all(matcher is found[0] for matcher in found)
    assert await compiler.compile(schema('{"type":"boolean"}')) is found[0]
    wrong = schema('{"type":"strin"}')
    for _ in range(2):
        with pytest.raises(GrammarError, match="strin"):
            await compiler.compile(wrong)
    assert len(tried) == 2


@pytest.mark.parametrize("text", [SLOW, LARGE, DEEP], ids=["slow", "large", "deep"])
async def test_a_grammar_that_takes_too_long_or_too_much_memory_is_refused(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.5)
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0)
            beats += 1

    beating = asyncio.create_task(beat())
    with pytest.raises(GrammarError, match=r"more than 0\.5 s of processor time, or too much memory"):
        await compiler.compile(schema(text))
    beating.cancel()
    assert beats > 10  # the loop went on
    assert not (await compiler.compile(schema("{}"))).is_error()


@pytest.mark.timeout(120)
async def test_who_leaves_ends_what_only_he_waits_for(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPILE_SECONDS", 3600.0)
    leaving = [asyncio.create_task(compiler.compile(schema(SLOW))) for _ in range(2)]
    staying = asyncio.create_task(compiler.compile(schema('{"type":"null"}')))
    await asyncio.sleep(0.05)
    assert not staying.done()
    for task in leaving:
        task.cancel()
    assert isinstance(await staying, LLMatcher)  # and does not wait for the time limit of the slow one
    assert compiler.find(schema(SLOW)) is None
    assert not compiler._tasks


async def test_a_waiting_list_that_is_full_refuses(compiler: GrammarCompiler) -> None:
    waiting = [asyncio.create_task(compiler.compile(schema(SLOW + " " * n))) for n in range(module.MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await compiler.compile(schema("{}"))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await compiler.compile(schema("{}"))


async def test_the_oldest_grammars_are_forgotten(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COMPILED", 2)
    specs = [schema(json.dumps({"const": n})) for n in range(3)]
    for spec in specs[:2]:
        await compiler.compile(spec)
    await compiler.compile(specs[0])
    await compiler.compile(specs[2])
    assert [compiler.find(spec) is not None for spec in specs] == [True, False, True]
    compiler.forget(specs[2])
    assert compiler.find(specs[2]) is None


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        (GrammarKind.REGEX, r"\d{2}|x/y", "x/y", "1"),
        (GrammarKind.CHOICE, json.dumps(["yes", 'no "never"', "\U0001f600"]), 'no "never"', "maybe"),
        (GrammarKind.GRAMMAR, 'start: "a" start "b" | "c"', "aacbb", "aacb"),
        (GrammarKind.GRAMMAR, 'root ::= "a" root "b" | [0-9]', "a5b", "a5"),
    ],
)
async def test_other_kinds_of_grammars_hold(
    compiler: GrammarCompiler, kind: GrammarKind, text: str, right: str, wrong: str
) -> None:
    matcher = await compiler.compile(GrammarSpec(kind, text))
    for answer, expected in ((right, True), (wrong, False)):
        copy, tokens = matcher.deep_copy(), list(answer.encode())
        assert (copy.try_consume_tokens(tokens) == len(tokens) and copy.is_accepting()) is expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [(GrammarKind.REGEX, "("), (GrammarKind.CHOICE, "[]"), (GrammarKind.GRAMMAR, "start: x"), (GrammarKind.JSON, "[]")],
)
async def test_what_is_no_grammar_is_refused(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> None:
    with pytest.raises(GrammarError):
        await compiler.compile(GrammarSpec(kind, text))
