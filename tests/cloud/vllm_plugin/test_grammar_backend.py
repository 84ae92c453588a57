"""vLLM's guidance backend with this project's grammars: compiled once each; an answer whose grammar gives up fails."""

import json
from types import SimpleNamespace

import pytest
from vllm.tokenizers import get_tokenizer
from vllm.v1.structured_output.backend_guidance import GuidanceGrammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

from cloud.engine import grammars
from cloud.vllm_plugin import grammar_backend
from cloud.vllm_plugin.grammar_backend import CompiledOnce
from tests.conftest import CLOUD_MODEL

SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


@pytest.fixture(scope="module")
def backend() -> CompiledOnce:
    outputs = SimpleNamespace(disable_any_whitespace=False, disable_additional_properties=False)
    tokenizer = get_tokenizer(str(CLOUD_MODEL))
    return CompiledOnce(SimpleNamespace(structured_outputs_config=outputs), tokenizer, len(tokenizer))


def test_a_grammar_is_compiled_once_and_each_answer_has_a_copy(
    backend: CompiledOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    matcher = grammar_backend.LLMatcher

    def counted(tokenizer: object, text: str, **options: object) -> object:
        compiled.append(text)
        return matcher(tokenizer, text, **options)

    monkeypatch.setattr(grammar_backend, "LLMatcher", counted)
    first, second = (backend.compile_grammar(StructuredOutputOptions.JSON, SCHEMA) for _ in range(2))
    assert len(compiled) == 1
    begun = backend.tokenizer.encode('{"a": 1', add_special_tokens=False)
    assert first.accept_tokens("1", begun)
    assert second.validate_tokens(begun) == begun, "the other answer has not moved"
    assert not first.validate_tokens(backend.tokenizer.encode("{", add_special_tokens=False))


def test_an_answer_that_does_not_match_accepts_no_end(backend: CompiledOnce) -> None:
    end = backend.ll_tokenizer.eos_token
    answer = backend.compile_grammar(StructuredOutputOptions.JSON, SCHEMA)
    assert not answer.accept_tokens("1", backend.tokenizer.encode("text", add_special_tokens=False))
    assert not answer.accept_tokens("1", [end])
    assert GuidanceGrammar.accept_tokens(answer, "1", [end]), "vLLM's own ends the answer"


def test_what_does_not_compile_fails_the_request(backend: CompiledOnce) -> None:
    with pytest.raises(ValueError, match="uniqueItems"):
        backend.compile_grammar(StructuredOutputOptions.JSON, json.dumps({"type": "array", "uniqueItems": True}))


@pytest.mark.parametrize("request_type", [StructuredOutputOptions.JSON_OBJECT, StructuredOutputOptions.CHOICE])
def test_all_kinds_of_vllm_compile(backend: CompiledOnce, request_type: StructuredOutputOptions) -> None:
    grammar = backend.compile_grammar(request_type, '["{}", "[]"]')
    text = backend.tokenizer.encode("{}", add_special_tokens=False)
    assert grammar.validate_tokens(text) == text


def test_web_server_and_engine_write_the_same_parameters_for_a_grammar() -> None:
    for spec in map(grammars.spec_of, [*map(grammars.params_of, SPECS)]):
        assert spec in SPECS


SPECS = [
    grammars.GrammarSpec(kind, text)
    for kind, text in zip(grammars.GrammarKind, (SCHEMA, "a|b", '["é", "b"]', 'start: "x"'), strict=True)
]
