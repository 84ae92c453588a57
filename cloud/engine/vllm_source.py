"""Reads vLLM's source, without importing it, and says which of the hooks it lacks."""

import ast
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cloud.engine.vllm_hooks import Called, Hooks, Overridden

Function = ast.FunctionDef | ast.AsyncFunctionDef
Read = Callable[[str], str | None]
"""The text of a file by its path in a wheel, `vllm/…`; None: there is no such file."""


def installed() -> Read:
    """Reads the installed vLLM."""
    spec = find_spec("vllm")
    folders = [Path(folder).parent for folder in (spec and spec.submodule_search_locations) or ()]

    def read(name: str) -> str | None:
        return next((path.read_text() for folder in folders if (path := folder / name).is_file()), None)

    return read


def wheel(path: Path) -> Read:
    """Reads a wheel, of which nothing is unpacked."""
    archive = zipfile.ZipFile(path)
    names = frozenset(archive.namelist())
    return lambda name: archive.read(name).decode() if name in names else None


def missing(read: Read, hooks: Hooks) -> list[str]:
    """What vLLM's source lacks of `hooks`, a line each."""
    source = Source(read)
    faults: list[str] = []
    for modules, names in hooks.items():
        module = next((one for one in modules.split(" | ") if source.module(one) is not None), None)
        if module is None:
            faults.append(f"there is no module {modules.replace(' | ', ' or ')}")
            continue
        checked = (_fault(source, module, name, need) for name, need in names.items())
        faults += [f"{module}: {fault}" for fault in checked if fault]
    return faults


class Source:
    """The modules of one vLLM as syntax trees."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.module = cache(self._module)
        self.members = cache(self._members)

    def _module(self, name: str) -> dict[str, ast.AST] | None:
        """What a module defines or imports, by name; None: there is no such module."""
        path = name.replace(".", "/")
        text = self._read(f"{path}.py")
        text = self._read(f"{path}/__init__.py") if text is None else text
        return None if text is None else dict(_names(ast.parse(text).body))

    def find(self, module: str, name: str) -> ast.AST | None:
        """The definition of a name, also where the module only imports it; None: there is none."""
        node = (self.module(module) or {}).get(name)
        if not isinstance(node, ast.ImportFrom):
            return node
        origin = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        where = self._imported(module, node)
        return self.find(where, origin) if where.partition(".")[0] == "vllm" else node

    def _members(self, module: str, node: ast.ClassDef) -> dict[str, ast.AST]:
        """The methods, fields and attributes of a class, those of its bases in vLLM among them."""
        found: dict[str, ast.AST] = {}
        for base in reversed(node.bases):
            name = ast.unparse(base).partition("[")[0]
            definition = self.find(module, name)
            if isinstance(definition, ast.ClassDef):
                found |= self.members(self._home(module, name), definition)
        return found | dict(_attributes(node)) | dict(_names(node.body))

    def _home(self, module: str, name: str) -> str:
        """The module that defines a name which `module` may only import."""
        node = (self.module(module) or {}).get(name)
        return self._home(self._imported(module, node), name) if isinstance(node, ast.ImportFrom) else module

    def _imported(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self._read(f"{module.replace('.', '/')}/__init__.py") is not None
        parts = module.split(".")
        return ".".join([*parts[: len(parts) - node.level + package], *filter(None, [node.module])])


def _names(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name, node
            case ast.ImportFrom():
                yield from ((alias.asname or alias.name, node) for alias in node.names)
            case ast.Assign():
                yield from ((target.id, node) for target in node.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node
            case ast.If() | ast.Try():
                handlers = [line for handler in getattr(node, "handlers", ()) for line in handler.body]
                yield from _names([*handlers, *node.orelse, *node.body])


def _attributes(node: ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    """What a class's methods set on `self`."""
    for one in ast.walk(node):
        match one:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name, one


def _fault(source: Source, module: str, name: str, need: Called | Overridden | None) -> str | None:
    outer, _, attribute = name.partition(".")
    node = source.find(module, outer)
    if isinstance(node, ast.ClassDef) and (attribute or need):
        members = source.members(module, node)
        node = members.get(attribute) if attribute else members.get("__init__", _constructor(members))
    elif attribute:
        node = None
    if node is None:
        return f"there is no {name}"
    if need is None:
        return None
    if not isinstance(node, Function):
        return f"{name} is not a function"
    return _wrong_parameters(name, node, need)


def _constructor(members: dict[str, ast.AST]) -> ast.AST:
    """The `__init__` that a dataclass or struct with these fields has."""
    fields = {name: node for name, node in members.items() if isinstance(node, ast.AnnAssign)}
    ordered = sorted(fields, key=lambda name: fields[name].value is not None)
    parameters = ast.arguments(
        posonlyargs=[],
        args=[ast.arg("self"), *map(ast.arg, ordered)],
        kwonlyargs=[],
        kw_defaults=[],
        defaults=[value for name in ordered if (value := fields[name].value) is not None],
    )
    return ast.FunctionDef("__init__", parameters, body=[], decorator_list=[])


def _wrong_parameters(name: str, node: Function, need: Called | Overridden) -> str | None:
    arguments, wanted = node.args, need.parameters.split()
    positional = [*arguments.posonlyargs, *arguments.args]
    required = positional[: len(positional) - len(arguments.defaults)]
    required += [one for one, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value is None]
    names, necessary = (
        [one.arg for one in group if one.arg not in ("self", "cls")]
        for group in ([*positional, *arguments.kwonlyargs], required)
    )
    if isinstance(need, Overridden):
        return None if names == wanted else f"{name} takes ({', '.join(names)}), not ({', '.join(wanted)})"
    if lacking := set(wanted) - set(names):
        return f"{name} takes no {sorted(lacking)[0]}"
    if more := set(necessary) - set(wanted):
        return f"{name} needs {sorted(more)[0]}"
    return None
