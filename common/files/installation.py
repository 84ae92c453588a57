"""Finds what the project ships, in a checkout or in an installed package, and where its programs write."""

import os
from pathlib import Path

PROJECT = Path(__file__).parents[2]
"""The checkout's folder; of an installed package the folder of all packages, in which nothing may be written."""
IN_WHEEL = PROJECT / "edgecloud"
"""Where an installed package has what a checkout has beside its packages: `config/`."""
CHECKOUT = (PROJECT / "pyproject.toml").is_file()
CACHE = Path.home() / ".cache" / "edgecloud"
LLAMA_SERVER = CACHE / "llama-server"
"""Where `make llama-server` puts it."""


def shipped(path: str | Path) -> Path:
    """`path` as it stands if it exists, else what the project ships under this relative name, else `path`.

    So `models/demo-edge.gguf` and `config/presets/qwen3.yaml` mean the same in a checkout, in an installed package, and
    in whatever folder a program is started; a file of yours with that name comes first.
    """
    own = Path(path)
    if own.is_absolute() or own.exists():
        return own
    places = [folder / own for folder in (PROJECT, IN_WHEEL)]
    return next((place for place in places if place.exists()), own)


def logs() -> Path:
    """The folder for the logs of servers that a program starts: `logs/` of a checkout, or the user's own."""
    if CHECKOUT:
        return PROJECT / "logs"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "edgecloud" / "logs"


def module_environment() -> dict[str, str]:
    """This process's environment, in which `python -P -m MODULE` finds the project's modules whatever the folder."""
    given = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *([given] if given else [])])}


def install_hint(extra: str) -> str:
    """What to do so that the packages of `extra` are there."""
    if CHECKOUT:
        return "run `make setup`"
    without_gpu = f" (without a GPU [{extra}-cpu])" if extra.endswith("cloud") else ""
    return f"install this project with its extra [{extra}]{without_gpu}"
