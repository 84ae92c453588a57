"""The files for Ray clusters: commands and keys that exist, the tested version, and what ends processes with actors."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.args import load_config
from edgecloud.cloud import parser
from tests.deploy.files import DEPLOY, KUBERNETES, ROOT

FOLDER = DEPLOY / "ray"
CLEANUP = "RAY_process_group_cleanup_enabled"


def job() -> dict[str, Any]:
    spec: dict[str, Any] = next(yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text()))["spec"]
    return spec


def groups() -> list[dict[str, Any]]:
    cluster = job()["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_jobs_command_starts_as_many_replicas_as_there_are_workers() -> None:
    words = shlex.split(job()["entrypoint"])
    assert words[0] == "python3" and (ROOT / Path(words[1]).name).is_file()
    flags = [word.replace("/opt/edgecloud", str(ROOT)) for word in words[2:]]
    config = load_config(parser().parse_args(flags)).cloud
    assert (config.replicas, config.ray.address) == (job()["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"], "auto")
    (port,) = groups()[0]["template"]["spec"]["containers"][0]["ports"]
    assert port["containerPort"] == config.server.port


def test_every_node_ends_the_processes_of_a_dead_actor_and_asks_for_a_token() -> None:
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": CLEANUP, "value": "1"} in container["env"]
    assert job()["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    cluster = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in cluster[name] if "ray start" in line]
        assert f"{CLEANUP}=1" in start and "RAY_AUTH_MODE=token" in start
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.mark.parametrize("name", ["requirements-ray.txt", "pyproject.toml"])
def test_the_version_is_that_of_the_requirements(name: str) -> None:
    assert f"ray=={job()['rayClusterSpec']['rayVersion']}" in (ROOT / name).read_text()


def test_the_service_and_the_secret_are_those_of_the_other_manifests() -> None:
    _, service = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text())
    (head, *_) = groups()
    assert service["spec"]["selector"] == head["template"]["metadata"]["labels"]
    other = (KUBERNETES / "base" / "cloud.yaml").read_text()
    (secret,) = [one["secret"] for one in head["template"]["spec"]["volumes"] if "secret" in one]
    assert f"secretName: {secret['secretName']}" in other
    assert "/run/secrets/edgecloud/cloud_api_keys" in other
