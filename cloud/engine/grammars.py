"""Checks what restricts answers, in the web server's process, before vLLM's engine gets it.

vLLM checks a grammar on the event loop, for each request again, and each round of a verified answer is one. Here it is
compiled once, off the loop and within limits; vLLM's own check is left out for those that passed.
"""

import json
from collections import OrderedDict
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output import backend_guidance

from common.errors import GrammarError
from common.grammar.compiler import MAX_COMPILED, PARSER_LIMITS, GrammarCompiler
from common.grammar.lark import lark_of
from common.grammar.spec import ANY_OBJECT, GrammarKind, GrammarSpec

_passed: OrderedDict[GrammarSpec, None] = OrderedDict()
"""The last grammars that were compiled in this process."""
_vllms_check = backend_guidance.validate_guidance_grammar


async def check(compiler: GrammarCompiler, spec: GrammarSpec) -> None:
    """Raises GrammarError, naming the fault, for a grammar that cannot be enforced."""
    await compiler.compile(spec)
    _passed[spec] = None
    _passed.move_to_end(spec)
    while len(_passed) > MAX_COMPILED:
        _passed.popitem(last=False)


def spec_of(outputs: StructuredOutputsParams | None) -> GrammarSpec | None:
    """The grammar that vLLM's parameters ask for; None, too, for structural tags, which vLLM alone supports."""
    if outputs is None:
        return None
    if outputs.json_object:
        return ANY_OBJECT
    for kind in GrammarKind:
        if (value := getattr(outputs, kind)) is not None:
            return GrammarSpec(kind, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return None


def params_of(spec: GrammarSpec | None) -> StructuredOutputsParams | None:
    """vLLM's parameters for a grammar that has been checked."""
    if spec is None:
        return None
    value = json.loads(spec.text) if spec.kind is GrammarKind.CHOICE else spec.text
    return StructuredOutputsParams(**{spec.kind.value: value})


def tokenizer_for(tokenizer: Any, vocab_size: int) -> LLTokenizer:
    """A Hugging Face tokenizer as llguidance reads it, as in the engine's process."""
    return backend_guidance.GuidanceBackend._build_ll_tokenizer(tokenizer, vocab_size)


def install() -> None:
    """Replaces vLLM's check in this process."""
    backend_guidance.validate_guidance_grammar = _validate


def _validate(sampling_params: SamplingParams, tokenizer: LLTokenizer | None = None) -> None:
    spec = spec_of(sampling_params.structured_outputs)
    if spec is None:
        _vllms_check(sampling_params, tokenizer)
    elif spec not in _passed:  # what vLLM itself makes of a request's tools
        try:
            fault = LLMatcher.validate_grammar(lark_of(spec), tokenizer, limits=PARSER_LIMITS)
        except GrammarError as error:
            raise VLLMValidationError(error.message) from error
        if fault:
            raise VLLMValidationError(fault)
