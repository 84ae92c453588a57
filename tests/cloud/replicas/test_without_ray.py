"""A cloud without Ray: more replicas than one say what to install."""

import argparse
import sys

import pytest

from cloud.replicas.actor import ReplicaSpec
from common.config_cloud import CloudConfig
from common.errors import StartError
from edgecloud import cloud


async def test_more_replicas_than_one_need_ray_and_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cloud.replicas.service", "cloud.replicas.ray_process"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    spec = ReplicaSpec("models/demo-cloud", {}, CloudConfig(replicas=2), "INFO", False)
    with pytest.raises(StartError, match=r"need Ray, which is not installed: pip install .*requirements/ray\.lock"):
        await cloud._serve_replicas(argparse.Namespace(), spec.cloud, spec)
