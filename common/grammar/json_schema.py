"""Prepares a JSON schema for llguidance: refuses by name what it would accept and not hold, and sets the white space.

llguidance itself refuses the keywords that it cannot hold. The gaps that are left are closed here: names that escapes
can spell twice, counts of names that may repeat, and references to places that this file does not look at.
"""

import re
from collections.abc import Iterator
from typing import Any, NoReturn

from common.errors import GrammarError
from common.grammar import numbers, patterns

WHITE_SPACE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""JSON on one line, at most one space after a comma or colon: a model that may write white space may never end."""
MAX_DEPTH = 64
"""Schemas nested in each other."""
MAX_OPTIONAL = 450
"""Optional properties of one object: wherever one may begin, the parser follows all that may come next."""
MAX_TAKEN = 2000
"""Characters of the names that an additional property must not have."""
MAX_PATTERN_PROPERTIES = 32
"""Of one object: each is compared with each."""
BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalProperties", "additionalItems")
REFERENCE = re.compile(
    r"#(?:/(?:items|(?:properties|\$defs|definitions|anyOf|oneOf|allOf|prefixItems)/[^/]+))*|#/(?:\$defs|definitions)/.+"
)
OBJECT_KEYWORDS = ("properties", "patternProperties", "additionalProperties", "required")


def prepared(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy of `schema` for llguidance; raises GrammarError, naming the keyword, for what could not be held."""
    closes = not any(_composes(part) for part in _parts(schema, 0))
    return {**_prepared(schema, schema, closes), "x-guidance": WHITE_SPACE}


def refuse(reason: str) -> NoReturn:
    """Raises GrammarError about the schema."""
    raise GrammarError(f"this JSON schema cannot be enforced: {reason}", param="response_format")


def _parts(schema: Any, depth: int) -> Iterator[dict[str, Any]]:
    """The schema and all schemas nested in it."""
    if isinstance(schema, dict):
        if depth > MAX_DEPTH:
            refuse(f"schemas are nested more than {MAX_DEPTH} deep")
        if depth and "$id" in schema:
            refuse("$id is supported at the top of the schema only")
        yield schema
        named = [inner for key in BY_NAME if isinstance(by_name := schema.get(key), dict) for inner in by_name.values()]
        listed = [inner for key in LISTS for inner in _items(schema.get(key))]
        for inner in (*named, *listed, *map(schema.get, SINGLE)):
            yield from _parts(inner, depth + 1)


def _composes(part: dict[str, Any]) -> bool:
    """Whether the properties of several schemas add up to one object's: then none of them alone says what is all."""
    beside = any(key in part for key in ("anyOf", "oneOf", "$ref")) and any(key in part for key in OBJECT_KEYWORDS)
    return "allOf" in part or beside


def _prepared(schema: Any, root: dict[str, Any], closes: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    part = {key: value for key, value in schema.items() if key != "x-guidance"}
    _check(part)
    part = _with_held_numbers(part)
    if not isinstance(part.get("items"), list):
        part.pop("additionalItems", None)  # says nothing then, but llguidance would take prefixItems for an old draft's
    if isinstance(part.get("oneOf"), list):
        # llguidance compares what is written in a oneOf, not what it refers to.
        part["oneOf"] = [_definition(option, root) for option in part["oneOf"]]
    for key, value in part.items():
        if key in SINGLE:
            part[key] = _prepared(value, root, closes)
        elif key in LISTS:
            part[key] = (
                [_prepared(inner, root, closes) for inner in _items(value)] if isinstance(value, list) else value
            )
        elif key in BY_NAME and isinstance(value, dict):
            part[key] = {name: _prepared(inner, root, closes) for name, inner in value.items()}
        elif key == "pattern" and isinstance(value, str):
            part[key] = _expression(value)
    return _with_known_names(part, closes)


def _definition(option: Any, root: dict[str, Any]) -> Any:
    """What `option` refers to, if it is nothing but a reference to one of the schema's definitions."""
    if not isinstance(option, dict) or list(option) != ["$ref"]:
        return option
    found = re.fullmatch(r"#/(\$defs|definitions)/([\w.-]+)", str(option["$ref"]))
    definitions = root.get(found[1]) if found else None
    return definitions.get(found[2], option) if found and isinstance(definitions, dict) else option


def _check(part: dict[str, Any]) -> None:
    """Refuses what llguidance would take and not hold, or what takes too long."""
    if isinstance(reference := part.get("$ref"), str) and not REFERENCE.fullmatch(reference):
        refuse(f"$ref {reference[:80]!r} does not refer to a schema within this one")
    if part.get("enum") == []:
        refuse("enum is empty: no value could match it")
    required = _items(part.get("required"))
    optional = len(_keys(part.get("properties")) - set(map(str, required)))
    if optional > MAX_OPTIONAL:
        refuse(f"an object has {optional} optional properties; at most {MAX_OPTIONAL} are supported")
    if len(_keys(part.get("patternProperties"))) > MAX_PATTERN_PROPERTIES:
        refuse(f"an object has more than {MAX_PATTERN_PROPERTIES} patternProperties")
    least = part.get("minProperties")
    if isinstance(least, int) and least > max(1, len(required)):
        # A name may come twice, and counts once.
        refuse("minProperties above 1 is supported up to the number of required properties")


def _with_known_names(part: dict[str, Any], closes: bool) -> dict[str, Any]:
    """An object whose names have one spelling each.

    Without additionalProperties an object that declares properties has no others, as in OpenAI's strict mode, xgrammar
    and llama.cpp, unless the schema composes it of several. llguidance takes an additional name in any escaped
    spelling, also in one of a declared name; one of patternProperties only in its plain spelling. So the former become
    the latter.
    """
    patterned, names = part.get("patternProperties"), sorted(_keys(part.get("properties")))
    if not names and not patterned:
        return part
    if isinstance(patterned, dict):
        part = part | {"patternProperties": {_expression(name): inner for name, inner in patterned.items()}}
    others = part.get("additionalProperties", not closes)
    if "additionalProperties" not in part and closes and not patterned:
        undeclared = {str(name): True for name in _items(part.get("required")) if name not in names}
        part = part | {"properties": part["properties"] | undeclared}
    if others is not False:
        if patterned:
            refuse("additionalProperties other than false is not supported beside patternProperties")
        part = part | {"patternProperties": {_name_of_others(part, names, others): others}}
    if patterned or others is not False:
        names += map(str, _items(part.get("required")))
        if not all(map(str.isprintable, names)):
            refuse("properties: names with control characters are supported where no other names are")
    return part | {"additionalProperties": False}


def _name_of_others(part: dict[str, Any], names: list[str], others: Any) -> str:
    """A pattern for the names that `others`, a schema, is for; if it allows everything, the declared ones may match."""
    taken = [*names, *map(str, _items(part.get("required")))]
    if others in (True, {}):
        return ""
    if sum(map(len, taken)) > MAX_TAKEN:
        refuse(f"beside additionalProperties, the names of properties have {MAX_TAKEN} characters at most")
    return patterns.other_than(taken)


def _with_held_numbers(part: dict[str, Any]) -> dict[str, Any]:
    try:
        return numbers.held(part)
    except (ValueError, OverflowError) as error:
        refuse(str(error))


def _expression(pattern: str) -> str:
    try:
        return patterns.held(pattern)
    except ValueError as error:
        refuse(f"pattern {pattern[:80]!r}: {error}")


def _keys(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
