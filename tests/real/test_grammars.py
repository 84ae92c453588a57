"""Grammars over a vocabulary of 151,936 tokens: what one token takes is less than a step of the model takes."""

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from common.config_edge import EdgeModelConfig
from common.errors import GrammarError
from common.grammar.compiler import PARSER_LIMITS
from common.grammar.json_schema import MAX_OPTIONAL
from common.grammar.lark import lark_of
from common.grammar.spec import GrammarKind, GrammarSpec
from edge.llama.batch import SequenceTokens
from edge.llama.grammar import AnswerGrammar, tokenizer_of
from edge.llama.model import Llama
from edge.llama.sampling import Logits
from tests.real.real_models import ROOT, needs

MODEL = "qwen2.5-coder-0.5b.gguf"
pytestmark = needs(MODEL)

SCHEMAS: dict[str, tuple[dict[str, Any], bytes]] = {
    "boolean": ({"type": "object", "properties": {"answer": {"type": "boolean"}}, "required": ["answer"]}, b"{"),
    "any object": ({"type": "object"}, b'{"a": [1, {"b": "'),
    "many ways": ({"type": "string", "pattern": "^([a-z]*|[a-z]*|[a-z]*|[a-z]*)*$"}, b'"abc'),
    "many states": ({"type": "string", "pattern": "^(.*a.{200})$"}, b'"aaba'),
    "unanchored": ({"type": "string", "pattern": r"[^@]+@[^@]+\.com"}, b'"a@b'),
    "words": ({"enum": [f"word{n * 7919 % 100_003}" for n in range(4000)]}, b'"word'),
    "properties": (
        {"type": "object", "properties": {f"property_{n}": {"type": "string"} for n in range(MAX_OPTIONAL)}},
        b'{"property_5": "x"',
    ),
}


@pytest.fixture(scope="module")
def llama() -> Iterator[Llama]:
    loaded = Llama(EdgeModelConfig(path=str(ROOT / MODEL), context_length=256, sequences=1, threads=1))
    yield loaded
    loaded.free()


@pytest.fixture(scope="module")
def tokenizer(llama: Llama) -> LLTokenizer:
    return tokenizer_of(llama.vocabulary)


def seconds_of_a_step(llama: Llama) -> tuple[float, Logits]:
    """The median of the processor time of a step that draws one token, on one thread; and its logits."""
    times = []
    for _ in range(9):
        began = time.process_time()
        rows = llama.decode([SequenceTokens(0, [5], 1)])
        times.append(time.process_time() - began)
    assert rows is not None
    return float(np.median(times)), rows[0].copy()


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_token_under_a_grammar_takes_less_than_the_models_step(
    llama: Llama, tokenizer: LLTokenizer, name: str
) -> None:
    schema, begun = SCHEMAS[name]
    step, row = seconds_of_a_step(llama)
    spec, noise, times = GrammarSpec(GrammarKind.JSON, json.dumps(schema)), np.random.default_rng(1), list[float]()
    start = LLMatcher(tokenizer, lark_of(spec), log_level=0, limits=PARSER_LIMITS)
    grammar = AnswerGrammar(spec, start, llama.vocabulary)
    assert grammar.follow(llama.vocabulary.tokenize(begun, False, False))
    for _ in range(40):
        logits = (row + noise.normal(0, 3, len(row))).astype(np.float32)
        began = time.process_time()
        try:
            token = grammar.draw(logits, False, lambda allowed: int(allowed.argmax()))
        except GrammarError:  # it has reached a limit
            assert name == "many states"
            break
        times.append(time.process_time() - began)
        if token in llama.vocabulary.end_tokens:
            break
    print(f"{name}: {np.mean(times) / step:.3f} steps on average, {max(times) / step:.2f} at most")
    assert np.mean(times) < 0.25 * step
    assert max(times) < 2 * step
