"""Lists the available ablations: presets for F1 to F4 and for each side alone, and those of the config.

An ablation of the config replaces the preset of the same name. The baseline is always chosen: the others are compared
with it.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from cli.server_process import EDGE
from common.config_schema import AblationConfig
from common.errors import ConfigError
from common.types import Mode


class Ablation(Struct, frozen=True, kw_only=True):
    """One change of the base config to measure.

    `config_overrides`: nested keys of the config. `mode`: of each request, as the config has none. `clients`: number of
    concurrent clients. `edge`: the edge's program. `fields`: more request fields than the overrides need.
    """

    name: str
    description: str
    config_overrides: dict[str, Any] = {}
    mode: Mode = Mode.COLLABORATIVE
    clients: int = 1
    edge: str = EDGE
    fields: dict[str, Any] = {}


def _without(feature: str) -> dict[str, Any]:
    return {"inference": {"features": {feature: False}}}


BASELINE = Ablation(name="baseline", description="everything as the config says")
CLOUD_ONLY = Ablation(name="cloud_only", description="the cloud answers alone", mode=Mode.CLOUD_ONLY)
"""The reference for agreement."""

PRESETS = (
    BASELINE,
    Ablation(
        name="no_confidence",
        description="F1 off: every draft is verified",
        config_overrides=_without("use_confidence_check"),
    ),
    Ablation(
        name="no_draft_verify",
        description="F2 off: the cloud generates where the edge is not confident",
        config_overrides=_without("use_draft_verify"),
    ),
    Ablation(
        name="no_kv_cache",
        description="F3 off: neither side keeps KV",
        config_overrides=_without("use_kv_cache"),
    ),
    Ablation(
        name="no_http_optimizations",
        description="F4 off: JSON, a connection per call, the whole prefix in every round",
        config_overrides={"communication": {"http_client": {"optimized": False}}},
    ),
    Ablation(name="edge_only", description="the edge answers alone", mode=Mode.EDGE_ONLY),
    CLOUD_ONLY,
)
FEATURES = {
    "F1 confidence": ("no_confidence", ("cloud_rate", "quality")),
    "F2 draft–verify": ("no_draft_verify", ("cloud_steps", "accepted_tokens", "latency_mean_ms")),
    "F3 KV cache": ("no_kv_cache", ("edge_recomputed", "cloud_recomputed", "first_token_mean_ms")),
    "F4 HTTP": ("no_http_optimizations", ("bytes_up", "connections")),
}
"""For each feature, the ablation that switches it off, and the measures that it is meant to improve."""


def available(configured: Sequence[AblationConfig]) -> dict[str, Ablation]:
    """Presets and the config's ablations, by name; raises ConfigError for invalid and for repeated names."""
    by_name = {preset.name: preset for preset in PRESETS}
    seen = set[str]()
    for number, given in enumerate(configured):
        if given.name in seen or not given.name.strip() or "," in given.name:
            problem = (
                "is there twice" if given.name in seen else "is not a name: it must have no commas and not be empty"
            )
            raise ConfigError(f"experiments.ablations[{number}].name: {given.name!r} {problem}")
        seen.add(given.name)
        by_name[given.name] = Ablation(
            name=given.name, description=given.description, config_overrides=given.config_overrides
        )
    return by_name


def chosen(names: str | None, configured: Sequence[AblationConfig]) -> list[Ablation]:
    """The ablations of a comma-separated list and the baseline, or all; raises ConfigError for an unknown one."""
    found = available(configured)
    if names is None:
        return list(found.values())
    wanted = list(dict.fromkeys([BASELINE.name, *(name.strip() for name in names.split(","))]))
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise ConfigError(f"no ablation {unknown[0]!r}; there are {', '.join(found)}")
    return [found[name] for name in wanted]
