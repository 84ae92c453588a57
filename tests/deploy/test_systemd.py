"""The units of systemd: hardened, in time to drain, and what they start runs in the environment that they make."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.config import FILE_SUFFIX
from common.errors import EndpointError
from common.http.client import HTTPClient
from tests.deploy.files import ROOT, SIDES, SYSTEMD, configured, unit
from tests.deploy.running_edge import running_edge

UNITS = [f"edgecloud-{side}.service" for side in SIDES]
MOST_EXPOSED = {"edgecloud-edge.service": 15, "edgecloud-cloud.service": 20}
"""Tenths, of 100, as `systemd-analyze security` counts them; a service without a word about it has 96."""
HARDENED = {
    "NoNewPrivileges": "yes",
    "PrivateTmp": "yes",
    "ProtectHome": "read-only",
    "ProtectSystem": "strict",
    "DynamicUser": "yes",
    "CapabilityBoundingSet": "",
    "UMask": "0077",
}
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


PLACES = {"%C": "/var/cache", "%S": "/var/lib", "%d": "/run/credentials"}
"""What systemd puts in place of its specifiers."""


def variables(name: str, places: dict[str, str] = PLACES) -> dict[str, str]:
    made = dict(pair.split("=", 1) for pair in unit(name)["Environment"])
    for specifier, folder in places.items():
        made = {key: value.replace(specifier, folder) for key, value in made.items()}
    return made


@analyze
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault_in_a_unit(name: str, tmp_path: Path) -> None:
    text = (SYSTEMD / name).read_text().replace("/opt/edgecloud/.venv/bin/python", "/bin/true")  # nothing is installed
    (tmp_path / name).write_text(text)
    check = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    found = subprocess.run(check, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


@analyze
def test_systemd_finds_a_fault_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "edgecloud-edge.service").write_text((SYSTEMD / UNITS[0]).read_text().replace("UMask=", "Umask="))
    check = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "edgecloud-edge.service")]
    assert "Umask" in subprocess.run(check, capture_output=True, text=True).stderr


@analyze
@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_hardly_exposed(name: str) -> None:
    check = ["systemd-analyze", "security", "--offline=true", "--json=short", f"--threshold={MOST_EXPOSED[name]}"]
    found = subprocess.run([*check, str(SYSTEMD / name)], capture_output=True, text=True)
    assert json.loads(found.stdout)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_has_no_rights_that_its_server_does_not_need(name: str) -> None:
    assert {key: unit(name)[key][-1] for key in HARDENED} == HARDENED
    assert unit(name)["KillMode"] == ["mixed"]  # SIGTERM for the server alone: it ends its own processes
    assert unit(name)["KillSignal"] == ["SIGTERM"]


@pytest.mark.parametrize("side", SIDES)
def test_a_unit_sets_keys_of_the_configuration_and_gives_its_server_time_to_drain(side: str, tmp_path: Path) -> None:
    name = f"edgecloud-{side}.service"
    own = {key: value for key, value in variables(name).items() if key.startswith("EDGECLOUD_")}
    files = [key for key in own if key.endswith(FILE_SUFFIX)]
    config = configured({key: value for key, value in own.items() if key not in files}, files, tmp_path)
    server = getattr(config, side).server
    assert server.api_keys
    assert int(unit(name)["TimeoutStopSec"][0]) > server.drain_seconds + 10
    credentials = {value.partition(":")[0] for value in unit(name)["LoadCredential"]}
    assert credentials == {own[key].removeprefix(f"{PLACES['%d']}/") for key in files}


@pytest.mark.parametrize("side", SIDES)
def test_a_unit_starts_the_program_of_its_side(side: str) -> None:
    python, program = unit(f"edgecloud-{side}.service")["ExecStart"][0].split()
    assert python == f"{unit(f'edgecloud-{side}.service')['WorkingDirectory'][0]}/.venv/bin/python"
    assert program == f"start_{side}.py" and (ROOT / program).exists()


async def test_the_edges_command_runs_in_the_environment_of_its_unit(tmp_path: Path) -> None:
    name = "edgecloud-edge.service"
    places = {specifier: tmp_path / folder.lstrip("/") for specifier, folder in PLACES.items()}
    for folder in places.values():
        (folder / "edgecloud-edge").mkdir(parents=True)
    made = variables(name, {specifier: str(folder) for specifier, folder in places.items()})
    (places["%d"] / "edge-api-keys").write_text("- let-me-in\n")
    (places["%d"] / "cloud-api-key").write_text("its-key\n")
    command = unit(name)["ExecStart"][0].split()[1:]
    question = {"prompt": "<|user|>What is AI?<|assistant|>", "max_tokens": 8, "mode": "edge_only"}
    async with running_edge(ROOT, made, command, "let-me-in") as client, HTTPClient(client.base_url) as stranger:
        assert (await client.post("/v1/completions", question, dict[str, Any]))["choices"][0]["text"]
        with pytest.raises(EndpointError, match="401"):
            await stranger.post("/v1/completions", question, dict[str, Any])
    assert list((places["%S"] / "edgecloud-edge").iterdir())
