"""The manifests of Kubernetes: probes on real routes, time to drain, no rights, and metrics that exist."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import ENV_PREFIX, FILE_SUFFIX
from common.config_schema import Config
from common.http.in_flight import CANCEL_SECONDS
from edge.edge_server import build_app
from tests.deploy.files import KUBERNETES, ROOT, SIDES, configured, documents, environment

BASE = documents("base")
SCALING = documents("autoscaling")


def one(kind: str, name: str, found: list[dict[str, Any]] = BASE) -> dict[str, Any]:
    (document,) = [each for each in found if each.get("kind") == kind and each["metadata"]["name"] == name]
    return document


def pod(side: str) -> dict[str, Any]:
    found: dict[str, Any] = one("StatefulSet", side)["spec"]["template"]["spec"]
    return found


def container(side: str) -> dict[str, Any]:
    (found,) = pod(side)["containers"]
    return dict(found)


@pytest.mark.parametrize("side", SIDES)
def test_probes_ask_routes_of_the_server_on_its_port(side: str, tmp_path: Path) -> None:
    config = configured(environment(side), [], tmp_path)
    (port,) = container(side)["ports"]
    assert port["containerPort"] == getattr(config, side).server.port
    probes = {name: container(side)[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert probes["liveness"]["path"] == "/health" and probes["readiness"]["path"] == "/ready"
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    routes = {resource.canonical for resource in build_app(Config()).router.resources()}
    assert {probe["path"] for probe in probes.values()} <= routes


@pytest.mark.parametrize("side", SIDES)
def test_a_pod_that_ends_gets_no_more_requests_and_has_time_for_those_that_it_has(side: str, tmp_path: Path) -> None:
    program, seconds = container(side)["lifecycle"]["preStop"]["exec"]["command"]
    drain = getattr(configured(environment(side), [], tmp_path), side).server.drain_seconds
    assert program == "sleep"
    assert pod(side)["terminationGracePeriodSeconds"] > int(seconds) + drain + CANCEL_SECONDS + 10


@pytest.mark.parametrize("side", SIDES)
def test_a_pod_has_no_rights(side: str) -> None:
    security = pod(side)["securityContext"]
    assert security["runAsNonRoot"] and security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert str(security["runAsUser"]) == "10001"  # the user of the images
    assert container(side)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(side)["automountServiceAccountToken"] is False
    assert container(side)["resources"]["limits"]["memory"]


@pytest.mark.parametrize("side", SIDES)
def test_variables_are_keys_of_the_configuration_and_secrets_are_mounted(side: str, tmp_path: Path) -> None:
    given = {each["name"]: each["value"] for each in container(side)["env"]}
    files = {name: path for name, path in given.items() if name.endswith(FILE_SUFFIX)}
    config = configured({name: value for name, value in given.items() if name not in files}, files, tmp_path)
    assert getattr(config, side).server.api_keys
    (keys,) = [volume["secret"] for volume in pod(side)["volumes"] if "secret" in volume]
    (folder,) = [each["mountPath"] for each in container(side)["volumeMounts"] if each["name"] == "keys"]
    assert {f"{folder}/{item['path']}" for item in keys["items"]} == set(files.values())
    assert (ROOT / container(side)["args"][1]).exists()


@pytest.mark.parametrize("side", SIDES)
def test_what_the_servers_write_lies_on_volumes(side: str) -> None:
    mounts = {each["mountPath"]: each["name"] for each in container(side)["volumeMounts"]}
    claims = {each["metadata"]["name"] for each in one("StatefulSet", side)["spec"]["volumeClaimTemplates"]}
    assert claims | {each["name"] for each in pod(side)["volumes"]} == set(mounts.values())
    assert mounts["/var/lib/edgecloud"] in claims
    assert all(value.startswith("/var/lib/edgecloud") for key, value in environment(side).items() if "HOME" in key)


def test_no_variable_that_kubernetes_sets_is_taken_for_a_key() -> None:
    services = [each["metadata"]["name"] for each in BASE if each["kind"] == "Service"]
    assert services
    assert not [name for name in services if name.upper().replace("-", "_").startswith(ENV_PREFIX)]
    assert [pod(side)["enableServiceLinks"] for side in SIDES] == [False, False]


def test_services_and_policies_select_the_pods_that_they_are_about() -> None:
    labels = {side: one("StatefulSet", side)["spec"]["template"]["metadata"]["labels"] for side in SIDES}
    for name, side in (("edge", "edge"), ("cloud", "cloud"), ("cloud-replicas", "cloud")):
        assert one("Service", name)["spec"]["selector"] == labels[side]
    for side in SIDES:
        assert one("StatefulSet", side)["spec"]["selector"]["matchLabels"] == labels[side]
        assert one("NetworkPolicy", side)["spec"]["podSelector"]["matchLabels"] == labels[side]
        assert one("Service", one("StatefulSet", side)["spec"]["serviceName"])
    (url,) = [each["value"] for each in container("edge")["env"] if each["name"].endswith("CLOUD_ENDPOINT")]
    (port,) = one("Service", "cloud")["spec"]["ports"]
    assert url == f"http://cloud:{port['port']}"


def test_only_edges_and_what_scrapes_reach_the_cloud() -> None:
    (rule,) = one("NetworkPolicy", "cloud")["spec"]["ingress"]
    assert [set(source) for source in rule["from"]] == [{"podSelector"}, {"namespaceSelector"}]
    assert rule["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "edge"}


def vllm_metrics() -> set[str]:
    """The names of vLLM's metrics, from its source: importing it takes half a minute."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    return set(re.findall(r'name="(vllm:\w+)"', source))


def test_replicas_follow_metrics_that_the_cloud_has() -> None:
    rules = yaml.safe_load((KUBERNETES / "autoscaling" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    sources = {rule["name"]["as"]: rule["seriesQuery"].partition("{")[0] for rule in rules}
    assert set(sources.values()) <= vllm_metrics()
    scaler = one("HorizontalPodAutoscaler", "cloud", SCALING)["spec"]
    assert {each["pods"]["metric"]["name"] for each in scaler["metrics"]} == set(sources)
    target = scaler["scaleTargetRef"]
    assert one(target["kind"], target["name"])
    monitor = one("PodMonitor", "edgecloud", SCALING)["spec"]
    assert monitor["selector"]["matchLabels"] == one("StatefulSet", "cloud")["spec"]["selector"]["matchLabels"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in container("cloud")["ports"]}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
@pytest.mark.parametrize("folder", ["base", "autoscaling"])
def test_kustomize_builds_every_manifest(folder: str) -> None:
    made = subprocess.run(["kubectl", "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    built = [(each["kind"], each["metadata"]["name"]) for each in yaml.safe_load_all(made.stdout)]
    wanted = BASE if folder == "base" else [*BASE, *(each for each in SCALING if "kind" in each)]
    assert sorted(built) == sorted((each["kind"], each["metadata"]["name"]) for each in wanted)
