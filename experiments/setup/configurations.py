"""Splits an ablation into request fields and server settings, so that few servers serve all configurations.

Settings that a request can override go into its fields. The others decide which servers a configuration needs;
configurations with the same needs share servers.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from cli.server_process import EDGE
from common import config as configs
from common.config_schema import Config, InferenceConfig
from common.errors import ConfigError
from common.types import Mode, Objective, VerificationMode
from experiments.setup.ablations import Ablation

GATE = {
    "edge.confidence.threshold": "confidence_threshold",
    "edge.confidence.product_threshold": "product_threshold",
}
REQUEST_FIELDS = {
    "inference.features.use_confidence_check": "use_confidence_check",
    "inference.features.use_draft_verify": "use_draft_verify",
    "inference.features.use_kv_cache": "use_kv_cache",
    "inference.max_draft_tokens": "max_draft_tokens",
    "inference.objective": "objective",
    "inference.way": "way",
    "inference.draft_ahead": "draft_ahead",
}
"""Keys of the config that a request can override, with their fields; a request can also override those of GATE."""
SET_BY_THE_EXPERIMENT = (
    "edge.server.host",
    "edge.server.port",
    "cloud.server.host",
    "cloud.server.port",
    "communication.edge_endpoint",
    "communication.cloud_endpoint",
    "communication.cloud_endpoints",
)


class Needs(NamedTuple):
    """The servers of a configuration: settings (KEY=VALUE) of its cloud and of its edge beside the common ones.

    `streams`: whether the edge streams from the cloud. A stream takes a connection out of the edge's pool for good;
    rounds on the same edge would then pay for new connections, so they get another edge. `program`: the edge's, a file
    or a module.
    """

    cloud: tuple[str, ...] = ()
    edge: tuple[str, ...] = ()
    streams: bool = False
    program: str = EDGE


class Configuration(Struct, frozen=True, kw_only=True):
    """One ablation of one base config: `fields` go into every request, `needs` are its servers.

    `timed`: keys of the config that make its counts depend on timing. `clients`: number of concurrent clients.
    """

    name: str
    description: str
    config_overrides: dict[str, Any]
    mode: Mode
    fields: dict[str, Any]
    needs: Needs
    timed: list[str] = []
    clients: int = 1


def configuration(ablation: Ablation, base: Config) -> Configuration:
    """The configuration of an ablation; raises ConfigError, with the whole path, for an invalid override."""
    where = f"{ablation.name}: config_overrides"
    config = configs.with_overrides(base, ablation.config_overrides, where)
    changed = dict(_changes(configs.plain(base), configs.plain(config)))
    if reserved := next((key for key in changed if key in SET_BY_THE_EXPERIMENT), None):
        raise ConfigError(f"{where}.{reserved}: the experiment sets this one itself, for each server that it starts")
    # The online gate ignores requests that carry thresholds.
    overridable = REQUEST_FIELDS if config.inference.online.enabled else {**REQUEST_FIELDS, **GATE}
    fields = {field: changed[key] for key, field in overridable.items() if key in changed} | ablation.fields
    others = {key: value for key, value in changed.items() if key not in overridable}
    return Configuration(
        name=ablation.name,
        description=ablation.description,
        config_overrides=ablation.config_overrides,
        mode=ablation.mode,
        fields=fields if ablation.mode is Mode.COLLABORATIVE else {**fields, "mode": ablation.mode.value},
        needs=Needs(
            cloud=_settings(others, "cloud", "logging"),
            edge=_settings(others, "edge", "communication", "inference", "logging"),
            streams=ablation.mode is Mode.CLOUD_ONLY or config.inference.way is not VerificationMode.ROUNDS,
            program=ablation.edge,
        ),
        timed=timed(config.inference) if ablation.mode is Mode.COLLABORATIVE else [],
        clients=ablation.clients,
    )


def timed(inference: InferenceConfig) -> list[str]:
    """The keys whose present values make timing decide how much is drafted, sent or verified."""
    lossless = inference.features.use_draft_verify and not inference.features.use_confidence_check
    dependent = {
        "inference.draft_ahead": inference.features.use_draft_verify and inference.draft_ahead,
        "inference.way": lossless and inference.way is not VerificationMode.ROUNDS,
        "inference.objective": lossless and inference.objective is not Objective.COST,
    }
    return [key for key, is_timed in dependent.items() if is_timed]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys whose values differ, with the values of `new`; `new` must have all keys of `old`."""
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _changes(before, value, f"{path}{key}.")
        elif value != before:
            yield f"{path}{key}", value


def _settings(changed: Mapping[str, Any], *sections: str) -> tuple[str, ...]:
    """The changes in those sections as KEY=VALUE, with values as JSON, which is also YAML."""
    selected = [(key, value) for key, value in changed.items() if key.partition(".")[0] in sections]
    return tuple(f"{key}={msgspec.json.encode(value).decode()}" for key, value in sorted(selected))
