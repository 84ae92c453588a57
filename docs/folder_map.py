"""The folder map of the README: one line a folder, made from the docstring of its `__init__.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PACKAGES = ("common", "cli", "calibration", "edge", "cloud", "models", "experiments", "benchmarks", "edgecloud")
"""In reading order; their sub-packages follow them, indented."""
OTHERS = {
    "config/": "config.yaml, and presets for pairs of models",
    "deploy/": "Container files, a compose file, systemd units, manifests for Kubernetes and Ray; what has been run",
    "examples/": "Short programs against running servers",
    "tests/": "Properties, in the folders of what they test; helpers and fakes in support/",
}
WIDTH = 16


def folder_map() -> str:
    """The map as a code block in Markdown."""
    lines = [f"{name:<{WIDTH}} {caption}".rstrip() for name, caption in _rows()]
    return "\n".join(["```", *lines, "```"])


def _rows() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((PROJECT / package).rglob("__init__.py"), key=lambda found: found.parent):
            folder = path.parent.relative_to(PROJECT)
            yield "  " * (len(folder.parts) - 1) + folder.name + "/", caption(path)
    yield from OTHERS.items()


def caption(path: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n")[0].removesuffix(".")
