"""Runs the front and its replicas, on Ray."""

import os
from collections.abc import Callable

from msgspec.structs import replace

from cloud.replicas.actor import ReplicaSpec
from cloud.replicas.fleet import Fleet, FleetTiming
from cloud.replicas.front import FLEET, build_app
from cloud.replicas.ray_process import RayReplica, ray_cluster, shares
from cloud.replicas.updates import Updates
from common.config_cloud import CloudConfig
from common.http_server import serve

DRAIN_MARGIN = 5.0
"""Seconds beyond `drain_seconds` after which a replica that drains is ended."""


async def serve_replicas(
    config: CloudConfig, spec: ReplicaSpec, read_again: Callable[[], ReplicaSpec], name: str
) -> None:
    """Serves until SIGINT or SIGTERM; see `common.http_server.serve`. `read_again` raises ConfigError or StartError."""
    with ray_cluster(config.ray, config.replicas):  # blocks for seconds, in which nothing is served yet
        cores = sorted(os.sched_getaffinity(0)) if not config.ray.address else []
        processes = {
            str(number): RayReplica(str(number), spec, cores=share)
            for number, share in enumerate(shares(cores, config.replicas))
        }
        timing = FleetTiming(drain=config.server.drain_seconds + DRAIN_MARGIN)
        app = build_app(Fleet(processes, timing), replace(config.server, api_keys=config.keys))
        updates = Updates(app[FLEET], list(processes.values()), read_again)
        app.cleanup_ctx.append(updates.at_sighup)
        await serve(app, config.server, name)
