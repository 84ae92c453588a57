"""Linters and the schemas of others on the files of `deploy/`, offline: `make test-deploy`."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.files import DEPLOY, DOCKER, SIDES, documents, interpolated

pytestmark = pytest.mark.deploy

KUBERNETES_VERSION = "1.37"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
FOREIGN = {"PodMonitor"}
"""Kinds that are not Kubernetes' own: their schema comes with Prometheus' operator."""


def hadolint(text: str) -> str:
    if HADOLINT is None:
        pytest.skip("there is no hadolint: run `make test-deploy`")
    return subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True).stdout


@pytest.mark.parametrize("side", SIDES)
def test_hadolint_finds_no_fault_in_a_container_file(side: str) -> None:
    text = (DOCKER / f"{side}.Dockerfile").read_text()
    assert hadolint(text) == ""
    assert "DL3002" in hadolint(text.replace("USER 10001:10001", "USER root"))


def compose_fault(text: str) -> str:
    """What the compose specification has against this text; empty: nothing."""
    compose_spec = pytest.importorskip("compose_spec", reason="run `make test-deploy`")
    merged = yaml.safe_dump(yaml.safe_load(interpolated(text)))  # with the aliases of YAML in place
    try:
        compose_spec.PyCompose.from_yaml(merged).to_spec()
    except ValueError as error:
        return str(error)
    return ""


def test_the_compose_file_is_one() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert compose_fault(text) == ""
    assert "memory_limit" in compose_fault(text.replace("mem_limit", "memory_limit"))
    assert "stop_grace_period" in compose_fault(text.replace("30s", "a while"))


def manifest_fault(document: dict[str, Any]) -> str:
    """What Kubernetes' own schema has against this manifest; empty: nothing."""
    validator = pytest.importorskip("kubernetes_validate", reason="run `make test-deploy`")
    try:
        validator.validate(document, KUBERNETES_VERSION, strict=True)
    except validator.ValidationError as error:
        return str(error.message)
    return ""


@pytest.mark.parametrize("folder", ["base", "autoscaling"])
def test_every_manifest_fits_the_schema_of_kubernetes(folder: str) -> None:
    own = [each for each in documents(folder) if "kind" in each and each["kind"] not in FOREIGN]
    assert own
    assert {each["metadata"]["name"]: fault for each in own if (fault := manifest_fault(each))} == {}


def test_a_manifest_with_an_unknown_field_does_not() -> None:
    (edge,) = [
        each for each in documents("base") if each["kind"] == "StatefulSet" and each["metadata"]["name"] == "edge"
    ]
    edge["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    assert "livenesProbe" in manifest_fault(edge)
