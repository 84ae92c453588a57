"""Reads the files of `deploy/`: instructions of container files, units of systemd, documents of YAML."""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from common import config
from common.config_schema import Config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKER, SYSTEMD, KUBERNETES = DEPLOY / "docker", DEPLOY / "systemd", DEPLOY / "kubernetes"
SIDES = ("edge", "cloud")


class Instruction(NamedTuple):
    """One line of a container file, with its continuation lines."""

    name: str
    text: str


def instructions(side: str) -> list[Instruction]:
    """Those of the container file of `side`, comments left out."""
    lines = (DOCKER / f"{side}.Dockerfile").read_text().splitlines()
    whole = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
    parts = (line.partition(" ") for line in whole.splitlines() if line.strip())
    return [Instruction(name, text.strip()) for name, _, text in parts]


def last_stage(side: str) -> list[Instruction]:
    """The instructions of what becomes the image."""
    found = instructions(side)
    return found[max(at for at, one in enumerate(found) if one.name == "FROM") :]


def copied(side: str, found: Sequence[Instruction] | None = None) -> dict[str, str]:
    """What the image takes out of the repository: places in the image by paths in the repository."""
    copies = [one.text.split() for one in found or last_stage(side) if one.name == "COPY" and "--from" not in one.text]
    return {source: target for *sources, target in copies for source in sources}


def environment(side: str) -> dict[str, str]:
    """The variables that the image sets."""
    return dict(word.split("=", 1) for one in last_stage(side) if one.name == "ENV" for word in shlex.split(one.text))


def unit(name: str) -> dict[str, list[str]]:
    """The values of each key of a unit, whatever its section."""
    values = defaultdict[str, list[str]](list)
    for line in (SYSTEMD / name).read_text().splitlines():
        if "=" in line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            values[key].append(value)
    return values


def interpolated(text: str) -> str:
    """A compose file with the default of each variable in its place."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def compose() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(interpolated((DEPLOY / "compose.yaml").read_text()))
    return tree


def documents(folder: str) -> list[dict[str, Any]]:
    """All documents of a folder of manifests, its kustomization left out."""
    paths = [path for path in sorted((KUBERNETES / folder).glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def configured(variables: Mapping[str, str], secrets: Iterable[str], folder: Path) -> Config:
    """The configuration that these variables make, with a file in `folder` for each of `secrets`, which they name.

    A key or value that the configuration does not have is an error.
    """
    made = dict(variables)
    for name in secrets:
        key = name.lower().removesuffix(config.FILE_SUFFIX.lower())
        path = folder / name
        path.write_text("- a-key\n" if key.endswith("api_keys") else "a-key\n")
        made[name] = str(path)
    return config.load(environment=made)
