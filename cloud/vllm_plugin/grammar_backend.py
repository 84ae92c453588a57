"""Patch: vLLM's guidance backend with this project's grammars, each compiled once.

vLLM compiles a grammar for each request, and each round of a verified answer is one. And where llguidance gives up (a
limit, an answer that does not match), vLLM's backend allows the end of the answer and nothing else, which then looks
finished; here the request fails.
"""

import threading
from collections import OrderedDict
from typing import Any

from llguidance import LLMatcher
from vllm.v1 import structured_output
from vllm.v1.structured_output.backend_guidance import GuidanceBackend, GuidanceGrammar, serialize_guidance_grammar
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar, StructuredOutputOptions

from common.grammar.compiler import MAX_COMPILED, PARSER_LIMITS
from common.grammar.lark import lark_of
from common.grammar.spec import ANY_OBJECT, GrammarKind, GrammarSpec

KINDS = {
    StructuredOutputOptions.JSON: GrammarKind.JSON,
    StructuredOutputOptions.REGEX: GrammarKind.REGEX,
    StructuredOutputOptions.CHOICE: GrammarKind.CHOICE,
    StructuredOutputOptions.GRAMMAR: GrammarKind.GRAMMAR,
}


def install() -> None:
    """Replaces the class that vLLM makes its backend of when the first grammar comes."""
    structured_output.GuidanceBackend = CompiledOnce


class CompiledOnce(GuidanceBackend):
    """Called in several threads of vLLM's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._turn = threading.Lock()

    def compile_grammar(
        self, request_type: StructuredOutputOptions, grammar_spec: str, stop_token_ids: set[int] | None = None
    ) -> StructuredOutputGrammar:
        """Raises ValueError for what does not compile, which fails the request."""
        text = _text(request_type, grammar_spec)
        with self._turn:
            start = self._compiled.pop(text, None)
            if start is None or start.is_error():
                start = LLMatcher(self.ll_tokenizer, text, log_level=0, limits=PARSER_LIMITS)
                if start.is_error():
                    raise ValueError(start.get_error())
            self._compiled[text] = start
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            copy = start.deep_copy()
        return AnswerOrError(ll_matcher=copy, ll_tokenizer=self.ll_tokenizer, vocab_size=self.vocab_size)


class AnswerOrError(GuidanceGrammar):
    """One answer's grammar; once llguidance has given up, it accepts no token, not even the end."""

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        return not self.ll_matcher.is_error() and super().accept_tokens(request_id, tokens)


def _text(request_type: StructuredOutputOptions, grammar_spec: Any) -> str:
    if request_type == StructuredOutputOptions.JSON_OBJECT:
        return lark_of(ANY_OBJECT)
    if request_type in KINDS:
        return lark_of(GrammarSpec(KINDS[request_type], grammar_spec))
    return serialize_guidance_grammar(request_type, grammar_spec)
