"""What a configuration asks of its servers and what of each request, so that as few servers as possible serve all.

Knows no server. What a request can say goes into its fields; what is left decides which servers a configuration needs,
and configurations that need the same share them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from common import config as configs
from common.config_schema import Config, InferenceConfig
from common.errors import ConfigError
from common.types import Mode, Objective, VerificationMode
from experiments.setup.ablations import EDGE, Ablation

GATE = {
    "edge.confidence.threshold": "confidence_threshold",
    "edge.confidence.product_threshold": "product_threshold",
}
SAYABLE = {
    "inference.features.use_confidence_check": "use_confidence_check",
    "inference.features.use_draft_verify": "use_draft_verify",
    "inference.features.use_kv_cache": "use_kv_cache",
    "inference.max_draft_tokens": "max_draft_tokens",
    "inference.objective": "objective",
    "inference.way": "way",
    "inference.draft_ahead": "draft_ahead",
}
"""Keys of the config that a request can say otherwise, and the fields in which it does; so can it those of GATE."""
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
    """Which servers: an edge and a cloud, under these settings (KEY=VALUE) beside those that all have.

    `streams`: the edge's answers come as streams. A stream takes a connection out of the edge's pool for good, so
    answers in rounds would have to make new ones, and pay for it, were they asked of the same edge. `program`: the
    edge's, a file or a module.
    """

    cloud: tuple[str, ...] = ()
    edge: tuple[str, ...] = ()
    streams: bool = False
    program: str = EDGE


class Configuration(Struct, frozen=True, kw_only=True):
    """One ablation of one base config: `fields` go into every request, `needs` are its servers.

    `timed`: keys of the config that make its counts depend on how long things take. `clients`: how many ask at once.
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
    """Raises ConfigError, with the whole path, for an override of a key that is not there or that cannot be."""
    where = f"{ablation.name}: config_overrides"
    config = configs.with_overrides(base, ablation.config_overrides, where)
    changed = dict(_changes(configs.plain(base), configs.plain(config)))
    if taken := next((key for key in changed if key in SET_BY_THE_EXPERIMENT), None):
        raise ConfigError(f"{where}.{taken}: the experiment sets this one itself, for each server that it starts")
    # A gate that follows the traffic answers only requests that bring no thresholds of their own.
    sayable = SAYABLE if config.inference.online.enabled else {**SAYABLE, **GATE}
    fields = {field: changed[key] for key, field in sayable.items() if key in changed} | ablation.fields
    left = {key: value for key, value in changed.items() if key not in sayable}
    return Configuration(
        name=ablation.name,
        description=ablation.description,
        config_overrides=ablation.config_overrides,
        mode=ablation.mode,
        fields=fields if ablation.mode is Mode.COLLABORATIVE else {**fields, "mode": ablation.mode.value},
        needs=Needs(
            cloud=_settings(left, "cloud", "logging"),
            edge=_settings(left, "edge", "communication", "inference", "logging"),
            streams=ablation.mode is Mode.CLOUD_ONLY or config.inference.way is not VerificationMode.ROUNDS,
            program=ablation.edge,
        ),
        timed=timed(config.inference) if ablation.mode is Mode.COLLABORATIVE else [],
        clients=ablation.clients,
    )


def timed(inference: InferenceConfig) -> list[str]:
    """The keys, as they are set, that let the clock decide how much is drafted, sent or verified."""
    lossless = inference.features.use_draft_verify and not inference.features.use_confidence_check
    found = {
        "inference.draft_ahead": inference.features.use_draft_verify and inference.draft_ahead,
        "inference.way": lossless and inference.way is not VerificationMode.ROUNDS,
        "inference.objective": lossless and inference.objective is not Objective.COST,
    }
    return [key for key, does in found.items() if does]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys under which `new` has another value than `old`; nothing of `old` is missing in `new`."""
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _changes(before, value, f"{path}{key}.")
        elif value != before:
            yield f"{path}{key}", value


def _settings(changed: Mapping[str, Any], *sections: str) -> tuple[str, ...]:
    """KEY=VALUE of those sections, the values as JSON, which is YAML too."""
    mine = [(key, value) for key, value in changed.items() if key.partition(".")[0] in sections]
    return tuple(f"{key}={msgspec.json.encode(value).decode()}" for key, value in sorted(mine))
