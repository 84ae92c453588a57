"""Writes what restricts an answer as one grammar in llguidance's notation, an extension of Lark's."""

import json

import llguidance

from common.errors import GrammarError
from common.grammar import json_schema
from common.grammar.spec import GrammarKind, GrammarSpec

MAX_TEXT = 65_536
"""Characters of a schema, an expression, a list of choices or a grammar."""
HEADER = '%llguidance {"no_forcing": true}\n'
"""The model chooses how to cut the text into tokens. Else, where the text is forced, only the tokenizer's own way of
cutting it would be allowed, which edge and cloud need not share."""


def lark_of(spec: GrammarSpec) -> str:
    """Raises GrammarError for what is no grammar, is too long, or could not be held."""
    if len(spec.text) > MAX_TEXT:
        raise GrammarError(f"{spec.noun} has {len(spec.text):,} characters; at most {MAX_TEXT:,}", param=spec.param)
    try:
        return HEADER + _rules(spec)
    except (ValueError, TypeError, RecursionError) as error:
        raise GrammarError(f"{spec.noun} cannot be enforced: {error}", param=spec.param) from error


def _rules(spec: GrammarSpec) -> str:
    match spec.kind:
        case GrammarKind.JSON:
            schema = json.loads(spec.text)
            if not isinstance(schema, dict):
                raise TypeError("it is not a JSON object")
            return "start: %json " + json.dumps(json_schema.prepared(schema), ensure_ascii=False, allow_nan=False)
        case GrammarKind.REGEX:
            return f"start: /{llguidance.regex_to_lark(spec.text, '')}/"
        case GrammarKind.CHOICE:
            texts = json.loads(spec.text)
            if not texts or not all(isinstance(text, str) for text in texts):
                raise TypeError("it is not a list of texts")
            return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        case GrammarKind.GRAMMAR:
            return llguidance.grammar_from("grammar", spec.text)
