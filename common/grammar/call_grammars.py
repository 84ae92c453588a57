"""The grammar of answers that are tool calls, or else JSON that matches a schema."""

import json
from collections.abc import Mapping
from typing import Any

from common.errors import GrammarError
from common.grammar.json_schema import prepared
from common.grammar.spec import GrammarKind, GrammarSpec

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each tool's arguments, by the tool's name."""
NOTES = ("description", "title", "$comment", "$schema", "$id")
"""What says nothing about a value; left out, because a grammar's text has a limit."""
VALUES = ("const", "enum", "default", "examples")
"""Keywords that hold values, not schemas."""
MAX_SCHEMAS = 1_000_000
"""Characters of all tools' schemas with their notes. A grammar has fewer: more are not worth reading."""
CALLS = """start: {start}
call: "<tool_call>\\n" body "\\n</tool_call>"
body: %json {body}
"""
"""As models of the Hermes and Qwen families write them: a model chooses worse in a form that it was not trained on."""


def grammar(tools: Schemas, parallel: bool, answer: GrammarSpec | None) -> GrammarSpec:
    """Calls, of which there is one if not `parallel`; or else the `answer`, a JSON schema, if that is given.

    Raises GrammarError for what could not be held.
    """
    try:
        return _grammar(tools, parallel, answer)
    except RecursionError as error:
        raise GrammarError("the schemas of the tools are nested too deeply", param="tools") from error


def _grammar(tools: Schemas, parallel: bool, answer: GrammarSpec | None) -> GrammarSpec:
    if len(json.dumps([*tools.values()])) > MAX_SCHEMAS:
        raise GrammarError(f"the schemas of the tools have more than {MAX_SCHEMAS:,} characters", param="tools")
    if answer and answer.kind is not GrammarKind.JSON:
        raise GrammarError("beside tools only a JSON schema is supported", param=answer.param)
    calls = 'call ("\\n" call)*' if parallel else "call"
    text = CALLS.format(start=calls + (" | answer" if answer else ""), body=_json(_call(tools)))
    if answer:
        text += f"answer: %json {_json(json.loads(answer.text))}\n"
    return GrammarSpec(GrammarKind.GRAMMAR, text)


def _json(schema: dict[str, Any]) -> str:
    return json.dumps(prepared(schema), ensure_ascii=False)


def _call(tools: Schemas) -> dict[str, Any]:
    """The schema of one call."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{at}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, name in enumerate(tools)
    ]
    places = {str(at): moved(schema, f"#/$defs/{at}") for at, schema in enumerate(tools.values())}
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": places}


def moved(schema: Any, place: str) -> Any:
    """The schema as it must be written at `place` of another one: its references lead there."""
    if isinstance(schema, list):
        return [moved(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: value for key, value in schema.items() if not (key in NOTES and isinstance(value, str))}
    return {key: _moved_value(key, value, place) for key, value in kept.items()}


def _moved_value(key: str, value: Any, place: str) -> Any:
    if key == "$ref" and isinstance(value, str) and value.startswith("#"):
        return place + value[1:]
    return value if key in VALUES else moved(value, place)
