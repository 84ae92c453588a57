"""Runs other projects' clients as programs of their own, in the environments that `make test-clients` made for them."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-clients"
PROGRAMS = Path(__file__).parent / "programs"
NODE_MODULES = ENVIRONMENTS / "node" / "node_modules"


def run_client(
    environment: str, *command: str, home: Path, more: dict[str, str] | None = None, ok: bool = True, limit: float = 600
) -> str:
    """What a client's command prints, on its error stream if it is to fail; `home` is where it runs.

    It finds nothing of this machine's settings, keys or sessions, and no server but the one that it is told.
    """
    done = subprocess.run(
        command,
        env=_settings(environment, home) | (more or {}),
        cwd=home,
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=limit,
        check=False,
    )
    assert (done.returncode == 0) == ok, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout if ok else done.stderr


@contextmanager
def running_client(environment: str, *command: str, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A client that goes on until the context ends."""
    process = subprocess.Popen(command, env=_settings(environment, home), cwd=home, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], limit: float = 240) -> None:
    """Returns when `url` answers 200; fails when the process ends first, or after so many seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), urlopen(url, timeout=10):
            return
        time.sleep(0.5)
    raise AssertionError(f"{url} did not answer")


def _settings(environment: str, home: Path) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home), "LLM_USER_PATH": str(home)}
    offline |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    paths = [str(ENVIRONMENTS / environment / "bin"), str(ENVIRONMENTS / "clients" / "bin"), os.defpath]
    return {"PATH": os.pathsep.join(paths), "HOME": str(home), "LANG": "C.UTF-8", "OPENAI_API_KEY": "none", **offline}


def found_by(program: str, url: str, home: Path, environment: str = "clients", *arguments: str) -> dict[str, Any]:
    """What one of the programs beside this file found at the server `url`: the JSON that it prints last."""
    command = ["python", str(PROGRAMS / program), url, *arguments]
    if program.endswith(".mjs"):
        shutil.copy(Path(__file__).parent / "node" / program, home)
        (home / "node_modules").symlink_to(NODE_MODULES)  # Node looks for packages beside the program
        command = ["node", program, url]
    found: dict[str, Any] = json.loads(run_client(environment, *command, home=home).splitlines()[-1])
    return found
