"""The compose file: what it names exists, its variables are keys of the configuration, its limits fit the servers."""

import re
from pathlib import Path
from typing import Any

import pytest

from common.config import FILE_SUFFIX
from tests.deploy.files import DEPLOY, ROOT, SIDES, compose, configured, environment, interpolated

COMPOSE = compose()


def service(side: str) -> dict[str, Any]:
    found: dict[str, Any] = COMPOSE["services"][side]
    return found


@pytest.mark.parametrize("side", SIDES)
def test_a_service_is_built_from_its_container_file_with_a_config_that_exists(side: str) -> None:
    build = service(side)["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).name == f"{side}.Dockerfile"
    flag, path = service(side)["command"]
    assert flag == "--config" and (ROOT / path).exists()
    assert "/config.yaml" in path  # PRESET is looked for in the same folder, as presets/NAME.yaml


@pytest.mark.parametrize("side", SIDES)
def test_variables_and_secrets_are_keys_of_the_configuration(side: str, tmp_path: Path) -> None:
    given = service(side)["environment"]
    files = {name: path for name, path in given.items() if name.endswith(FILE_SUFFIX)}
    config = configured({name: value for name, value in given.items() if name not in files}, files, tmp_path)
    assert getattr(config, side).server.api_keys
    assert set(files.values()) == {f"/run/secrets/{name}" for name in service(side)["secrets"]}
    assert set(service(side)["secrets"]) <= set(COMPOSE["secrets"])


def test_the_edge_asks_the_cloud_of_the_same_file_and_shows_it_a_key() -> None:
    url = service("edge")["environment"]["EDGECLOUD_COMMUNICATION__CLOUD_ENDPOINT"]
    assert url == "http://cloud:8081" and "cloud" in COMPOSE["services"]
    assert "cloud_api_keys" not in service("edge")["secrets"]  # only the one that it shows


@pytest.mark.parametrize("side", SIDES)
def test_ports_are_the_servers_own_and_published_on_loopback_alone(side: str, tmp_path: Path) -> None:
    port = getattr(configured(environment(side), [], tmp_path), side).server.port
    assert service(side)["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"http://127.0.0.1:{port}/health'" in service(side)["healthcheck"]["test"][-1]


@pytest.mark.parametrize("side", SIDES)
def test_a_server_has_time_to_drain_and_bounds_for_all_that_it_takes(side: str, tmp_path: Path) -> None:
    drain = getattr(configured(environment(side), [], tmp_path), side).server.drain_seconds
    found = service(side)
    assert int(found["stop_grace_period"].removesuffix("s")) > drain + 10
    assert {"mem_limit", "pids_limit"} <= set(found)
    assert found["read_only"] and found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert {volume.partition(":")[0] for volume in found["volumes"]} <= set(COMPOSE["volumes"])


def test_what_the_servers_write_lies_on_a_volume(tmp_path: Path) -> None:
    edge = [volume.partition(":")[2] for volume in service("edge")["volumes"]]
    assert configured(environment("edge"), [], tmp_path).edge.kv_cache.directory in edge
    assert environment("edge")["HF_HOME"] in edge
    assert environment("cloud")["HOME"] in [volume.partition(":")[2] for volume in service("cloud")["volumes"]]


def test_secrets_are_kept_out_of_the_repository() -> None:
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert {Path(one["file"]).parent.name for one in COMPOSE["secrets"].values()} == {"secrets"}


def test_every_variable_of_the_file_has_a_default_and_a_line_in_the_readme() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert "${" not in interpolated(text)
    readme = (DEPLOY / "README.md").read_text()
    assert {name for name in re.findall(r"\$\{(\w+)", text) if f"`{name}`" not in readme} == set()
