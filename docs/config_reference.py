"""docs/CONFIG.md: every key of the configuration with its values, default and meaning, read from the schema."""

import ast
import inspect
import textwrap
from collections.abc import Iterator

import msgspec
from msgspec import inspect as schema

from common.config_schema import DEPRECATED, Config
from common.config_values import Section

HEAD = """# Configuration: every key

Generated from the schema by `make docs`. [config/config.yaml](../config/config.yaml) has the keys that people
set most. Any other key of this page can be added there, or to a file of your own, which needs only what differs from
the defaults.

The environment overrides a key (`EDGECLOUD_EDGE__SERVER__PORT=9000`), the command line overrides both
(`--set edge.server.port=9000`). Paths are relative to the folder that a program is started in. A wrong key, type or
value ends the start with one line that names its path.
"""


def config_reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_sections(Config(), "")]).rstrip() + "\n"


def _sections(section: Section, path: str) -> Iterator[str]:
    """A table of the section's own keys with its values as defaults, then the same for each section below it."""
    values = {name: getattr(section, name) for name in section.__struct_fields__}
    own = {name: value for name, value in values.items() if not isinstance(value, Section)}
    if own:
        yield f"## {path}\n"
        if type(section).__doc__ not in (None, Section.__doc__):
            yield " ".join(str(type(section).__doc__).split()) + "\n"
        yield "| key | values | default | meaning |\n|---|---|---|---|"
        yield from _rows(type(section), own, path)
        yield ""
    for field in schema.type_info(type(section)).fields:  # type: ignore[attr-defined]
        below, value = f"{path}.{field.name}".lstrip("."), values[field.name]
        if isinstance(value, Section):
            yield from _sections(value, below)
        elif isinstance(field.type, schema.ListType) and isinstance(field.type.item_type, schema.StructType):
            entry = field.type.item_type.cls
            assert issubclass(entry, Section)
            yield from _entries(entry, below)


def _entries(section: type[Section], path: str) -> Iterator[str]:
    """A table of the keys of a list's entries."""
    fields = msgspec.structs.fields(section)
    own = {
        one.name: one.default if one.default_factory is msgspec.NODEFAULT else one.default_factory() for one in fields
    }
    yield f"## Each of {path}\n\n| key | values | default | meaning |\n|---|---|---|---|"
    yield from _rows(section, own, path)
    yield ""


def _rows(section: type[Section], defaults: dict[str, object], path: str) -> Iterator[str]:
    types = {field.name: field.type for field in schema.type_info(section).fields}  # type: ignore[attr-defined]
    meanings = field_docstrings(section)
    for name, default in defaults.items():
        key = f"{path}.{name}"
        meaning = f"Deprecated: {DEPRECATED[key]}." if key in DEPRECATED else meanings[name]
        shown = "none" if default is msgspec.NODEFAULT else f"`{msgspec.json.encode(default, enc_hook=repr).decode()}`"
        yield f"| `{name}` | {_values(types[name])} | {shown} | {meaning} |"


def field_docstrings(section: type[Section]) -> dict[str, str]:
    """The docstring behind each field of the section; a field without one is missing."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _values(type_: schema.Type) -> str:
    match type_:
        case schema.BoolType():
            return "true, false"
        case schema.IntType(ge=low, gt=None, le=high) | schema.FloatType(ge=low, gt=None, le=high):
            return _number("integer" if isinstance(type_, schema.IntType) else "number", low, high)
        case schema.FloatType(gt=low, lt=high, le=highest):
            end = f" and below {high:g}" if high is not None else f" to {highest:g}" if highest is not None else ""
            return f"number above {low:g}{end}"
        case schema.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case schema.EnumType(cls=cls):
            return ", ".join(f"`{member.value}`" for member in cls)
        case schema.ListType(item_type=item):
            return f"list of: {_values(item)}"
        case schema.DictType():
            return "keys and values"
        case schema.UnionType(types=types):
            return ", ".join("null" if isinstance(one, schema.NoneType) else _values(one) for one in types)
        case schema.StructType(cls=cls):
            return ", ".join(f"`{name}`" for name in cls.__struct_fields__)
    return "text"


def _number(kind: str, low: float | None, high: float | None) -> str:
    match low, high:
        case None, None:
            return kind
        case low, None:
            return f"{kind} from {low:g}"
        case _:
            return f"{kind}, {low:g} to {high:g}"
