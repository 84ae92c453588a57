"""vLLM's source has all that this project uses of it; what lacks something is refused in one line before an import."""

import ast
import logging
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.engine import version, vllm_hooks
from cloud.engine.vllm_hooks import HOOKS, Called, Hooks, Overridden
from cloud.engine.vllm_source import Read, installed, missing
from cloud.engine.vllm_source import wheel as read_wheel
from common.errors import StartError

ROOT = Path(__file__).parents[3]
USERS = ("cloud", "benchmarks", "models", "experiments", "cli")


def source(**modules: str) -> Read:
    """A vLLM of these modules; the two underscores in their names stand for dots."""
    files = {f"vllm/{name.replace('__', '/')}.py": text for name, text in modules.items()}
    return lambda name: files.get(name)


def imports() -> Iterator[tuple[str, str]]:
    """Each module of vLLM and each name that this project imports from it, also in programs that are strings."""
    for path in [file for user in USERS for file in (ROOT / user).rglob("*.py")]:
        tree = ast.parse(path.read_text())
        programs = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        texts = [text for text in programs if isinstance(text, str) and "\nfrom vllm" in text]
        for node in [node for one in [tree, *map(ast.parse, texts)] for node in ast.walk(one)]:
            match node:
                case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "vllm":
                    yield from ((module, alias.name) for alias in names)
                case ast.Import(names=names):
                    yield from ((alias.name, "") for alias in names if alias.name.split(".")[0] == "vllm")


def test_every_import_of_vllm_is_within_what_the_check_covers() -> None:
    covered = {
        (module, ".".join(name.split(".")[:1]))
        for modules, names in HOOKS.items()
        for module in modules.split(" | ")
        for name in names
    }
    modules = {module for module, _ in covered}
    found = {(module, name) for module, name in imports() if f"{module}.{name}" not in modules}
    assert len(found) > 40
    assert found - covered == set()


def test_no_module_is_in_two_groups_of_hooks_of_which_one_would_be_lost() -> None:
    groups = [value for name, value in vars(vllm_hooks).items() if name.isupper() and value is not HOOKS]
    assert sum(map(len, groups)) == len(HOOKS)


def test_the_installed_vllm_is_a_tested_one_and_has_all_of_it(caplog: pytest.LogCaptureFixture) -> None:
    assert missing(installed(), HOOKS) == []
    with caplog.at_level(logging.WARNING):
        version.check()
        version.check("0.32.0+cpu")
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "name", "need", "fault"),
    [
        ("class A:\n  def f(self, x, y): ...", "A.f", Overridden("x y"), None),
        ("class A:\n  def f(self, x, y, z=0): ...", "A.f", Overridden("x y"), "A.f takes (x, y, z), not (x, y)"),
        ("class A:\n  def f(self, x, y, z=0): ...", "A.f", Called("x y"), None),
        ("class A:\n  def f(self, x, y, z): ...", "A.f", Called("x y"), "A.f needs z"),
        ("class A:\n  def f(self, x, *, z): ...", "A.f", Called("x"), "A.f needs z"),
        ("class A:\n  def f(self, x): ...", "A.f", Called("x y"), "A.f takes no y"),
        ("class A:\n  def g(self, x): ...", "A.f", None, "there is no A.f"),
        ("class A:\n  def g(self): self.f, self.h = 1, 2", "A.h", None, None),
        ("class B:\n  f: int\nclass A(B): ...", "A.f", None, None),
        ("class A:\n  x: int\n  y: int = 0", "A", Called("x"), None),
        ("class A:\n  x: int\n  y: int", "A", Called("x"), "A needs y"),
        ("f = 1", "f", Called(""), "f is not a function"),
        ("", "A", None, "there is no A"),
        ("try:\n  from vllm.n import A\nexcept ImportError:\n  A = None", "A.f", None, None),
        ("from .n import A", "A.f", None, None),
        ("from .n import C", "C.f", None, "there is no C.f"),
    ],
)
def test_a_missing_name_or_a_changed_signature_is_named(
    text: str, name: str, need: Called | Overridden | None, fault: str | None
) -> None:
    found = missing(source(m=text, n="class A:\n  def f(self): ..."), {"vllm.m": {name: need}})
    assert found == ([f"vllm.m: {fault}"] if fault else [])


def test_a_module_may_have_moved_to_one_of_its_known_names() -> None:
    hooks: Hooks = {"vllm.new | vllm.old": {"f": None}}
    assert missing(source(new="def f(): ..."), hooks) == missing(source(old="def f(): ..."), hooks) == []
    assert missing(source(other="def f(): ..."), hooks) == ["there is no module vllm.new or vllm.old"]


def test_a_wheel_is_read_without_unpacking_it(tmp_path: Path) -> None:
    path = tmp_path / "vllm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vllm/a/__init__.py", "from .b import f")
        archive.writestr("vllm/a/b.py", "def f(x): ...")
    read = read_wheel(path)
    assert missing(read, {"vllm.a": {"f": Called("x")}}) == []
    assert missing(read, {"vllm.a": {"f": Called("y")}}) == ["vllm.a: f takes no y"]


def test_an_untested_version_with_all_of_it_is_warned_of_with_both_numbers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        version.check("0.99.1", source(m="a = 1"), {"vllm.m": {"a": None}})
    assert "0.99.1" in caplog.text
    assert "0.32.0" in caplog.text


def test_the_cloud_server_refuses_a_vllm_that_lacks_something_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise ImportError('must not be imported')")
    (tmp_path / "vllm-0.9.0.dist-info").mkdir()
    (tmp_path / "vllm-0.9.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.9.0\n")
    program = [sys.executable, "start_cloud.py", "--port", "0"]
    path = {"PYTHONPATH": f"{tmp_path}"}
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env=path, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: vLLM 0.9.0 does not work with this project")
    assert "vllm.v1.core.sched.scheduler" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_any_vllm_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "version", refuse)
    with pytest.raises(StartError, match="make setup"):
        version.check()


def refuse(name: str) -> str:
    raise version.PackageNotFoundError(name)
