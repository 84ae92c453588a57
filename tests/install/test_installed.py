"""The project as people install it: sdist and wheel in a bare virtual environment, started in a folder of their own."""

import asyncio
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.demo import free_ports
from common.http.client import HTTPClient

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, so that both hold all that is needed."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, timeout=300)
    (sdist,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "-xzf", str(sdist), "-C", str(folder)], check=True)
    subprocess.run([*build, "-t", "wheel"], cwd=folder / sdist.name.removesuffix(".tar.gz"), check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return wheel


class Installed:
    """A virtual environment with the wheel, and a person's home and working folder."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=True)
        self.bin = folder / "venv" / "bin"
        self.home, self.work = folder / "home", folder / "work"
        self.home.mkdir()
        self.work.mkdir()
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.environment = {**kept, "HOME": str(self.home), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}

    def pip(self, *words: str) -> None:
        command = [self.bin / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *words]
        subprocess.run(command, check=True, timeout=1500)

    def run(self, *words: str) -> str:
        """What `edgecloud` prints; it must succeed."""
        said = subprocess.run(
            [self.bin / "edgecloud", *words], cwd=self.work, env=self.environment, capture_output=True, text=True
        )
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout

    @asynccontextmanager
    async def edge(self) -> AsyncIterator[str]:
        """The URL of a running `edgecloud edge`."""
        (port,) = free_ports(1)
        process = await asyncio.create_subprocess_exec(
            *(self.bin / "edgecloud", "edge", "--port", str(port)), cwd=self.work, env=self.environment
        )
        url = f"http://localhost:{port}"
        try:
            async with HTTPClient(url) as client, asyncio.timeout(120):
                while not await client.healthy():
                    assert process.returncode is None, "the edge did not start"
                    await asyncio.sleep(0.2)
                yield url
        finally:
            process.terminate()
            await process.wait()

    def files(self) -> set[Path]:
        """All files of the environment."""
        return {path for path in self.bin.parent.rglob("*") if path.is_file()}


async def test_an_edge_installed_alone_answers_and_writes_nothing_into_its_packages(
    wheel: Path, tmp_path: Path
) -> None:
    """If pip has no wheel of llama.cpp in its cache, it compiles one, which takes minutes."""
    installed = Installed(tmp_path)
    installed.pip(f"{wheel}[edge]", "-c", str(ROOT / "requirements-edge.txt"))
    before = installed.files()
    async with installed.edge() as url:
        asked = ("ask", "What is AI?", "--temperature", "0", "--set", f"communication.edge_endpoint={url}")
        answer = await asyncio.to_thread(installed.run, *asked)
    assert answer.startswith("Artificial intelligence is")
    assert "cannot reach http://localhost:8081" in answer, "there is no cloud"
    assert "checks of an edge passed" in installed.run("doctor")
    assert not {"torch", "vllm"} & {path.name for path in installed.bin.parent.glob("lib/*/site-packages/*")}
    assert installed.files() == before
    assert (installed.home / ".local" / "state" / "edgecloud" / "logs" / "edge.log").is_file()
    assert list(installed.work.iterdir()) == []


def test_both_servers_run_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """With the packages of this environment, in place of a download of a gigabyte."""
    installed = Installed(tmp_path)
    installed.pip("--no-deps", str(wheel))
    (packages,) = installed.bin.parent.glob("lib/*/site-packages")
    (packages / "tested.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    assert "checks passed: edgecloud serve" in installed.run("doctor")
    answer = installed.run("demo", "What is AI?", "--temperature", "0")
    assert "Artificial intelligence is" in answer and "degraded" not in answer
    cut = ("--model", "models/demo-cloud", "--exits-file", "models/demo-cloud-exits.safetensors", "--quantize", "f32")
    installed.run("partition", *cut, "--output", "models/demo-split")
    answer = installed.run("demo", "What is AI?", "--config", "config/presets/demo-split.yaml", "--temperature", "0")
    assert "Artificial intelligence is" in answer
