"""What is installed is pinned and has a hash: the locks say what the requirements say, and `make setup` uses them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = (
    "cpu",
    "edge",
    "otel",
    "ray",
    "cloud-image",
    "dev",
    "clients",
    "litellm",
    "aider",
    "console",
    "deploy",
    "tools",
)
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def pinned(path: Path) -> dict[str, str]:
    """Versions by name, in the normal form of names."""
    lines = [line.split("#")[0].strip().removesuffix("\\").split(";")[0] for line in path.read_text().splitlines()]
    pairs = [line.partition("==")[::2] for line in lines if "==" in line]
    return {re.sub(r"[-_.]+", "-", name).lower(): version.strip() for name, version in pairs}


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_pins_exactly_what_its_requirements_name(name: str) -> None:
    assert pinned(ROOT / "requirements" / f"{name}.lock") == pinned(ROOT / f"requirements-{name}.txt"), (
        "run `make lock`"
    )


def test_the_lock_for_gpus_pins_what_its_requirements_name_and_all_that_these_need() -> None:
    wanted = pinned(ROOT / "requirements.txt") | pinned(ROOT / "requirements-edge.txt")
    locked = pinned(ROOT / "requirements" / "gpu.lock")
    assert wanted.items() <= locked.items(), "run `make lock`"
    assert "torch" in locked


def test_the_cpu_build_of_torch_is_that_of_the_requirements() -> None:
    (version,) = pinned(ROOT / "requirements" / "torch-cpu.lock").values()
    assert version.partition("+")[0] == pinned(ROOT / "requirements-cpu.txt")["torch"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_has_a_hash_and_no_lock_names_an_address(path: Path) -> None:
    entries = re.split(r"\n(?! )", path.read_text().strip())
    assert len(entries) == len(pinned(path)) > 0
    assert [
        one for one in entries if not re.fullmatch(r"\S+==\S+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", one)
    ] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("locked", "hashed"), [("1", True), ("0", False)])
def test_setup_installs_nothing_without_a_hash_unless_it_is_told_to(locked: str, hashed: bool) -> None:
    steps = ["make", "-n", "-B", "setup", f"LOCKED={locked}"]
    lines = subprocess.run(steps, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert {"--require-hashes" in line for line in installs} == {hashed}
    assert any("LOCKED=0: no package is compared with a hash" in line for line in lines) == (not hashed)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("locked", ["1", "0"])
def test_what_was_compiled_with_other_options_is_compiled_again(locked: str) -> None:
    caches = set[str]()
    for options in ("", "-DGGML_NATIVE=OFF", "-DGGML_NATIVE=OFF"):
        steps = ["make", "-n", "-B", "setup", f"LOCKED={locked}", f"CMAKE_ARGS={options}"]
        printed = subprocess.run(steps, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        caches |= set(re.findall(r"--cache-dir (\S+)", printed))
    assert len(caches) == 2
