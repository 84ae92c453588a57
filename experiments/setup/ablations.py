"""The ablations to choose from: presets for F1 to F4 and for either side alone, and the config's own. Knows no server.

An ablation of the config takes the place of the preset of its name. The baseline is always among those chosen: it is
what the others are compared with.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from common.config_schema import AblationConfig
from common.errors import ConfigError
from common.types import Mode

EDGE = "start_edge.py"


class Ablation(Struct, frozen=True, kw_only=True):
    """`config_overrides`: nested keys of the config. `mode`: who answers, which a request says and no config.

    `clients`: how many ask at once. `edge`: the program that the edge is, `fields`: what requests say beside what the
    overrides make them say.
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
"""Whose answers are what the others may agree with."""

PRESETS = (
    BASELINE,
    Ablation(
        name="no_confidence",
        description="F1 off: every draft is verified",
        config_overrides=_without("use_confidence_check"),
    ),
    Ablation(
        name="no_draft_verify",
        description="F2 off: the cloud generates where the edge is unsure",
        config_overrides=_without("use_draft_verify"),
    ),
    Ablation(
        name="no_kv_cache",
        description="F3 off: no KV is kept, on either side",
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
"""Which ablation switches a feature off, and the measures that the feature is for."""


def available(configured: Sequence[AblationConfig]) -> dict[str, Ablation]:
    """Presets and the config's ablations, by name; raises ConfigError for a name that the config has twice."""
    found = {preset.name: preset for preset in PRESETS}
    seen = set[str]()
    for number, given in enumerate(configured):
        if given.name in seen or not given.name.strip() or "," in given.name:
            problem = "is there twice" if given.name in seen else "is no name: it takes one without commas"
            raise ConfigError(f"experiments.ablations[{number}].name: {given.name!r} {problem}")
        seen.add(given.name)
        found[given.name] = Ablation(
            name=given.name, description=given.description, config_overrides=given.config_overrides
        )
    return found


def chosen(names: str | None, configured: Sequence[AblationConfig]) -> list[Ablation]:
    """Those of a comma-separated list and the baseline, or all; raises ConfigError for an unknown one."""
    found = available(configured)
    if names is None:
        return list(found.values())
    wanted = list(dict.fromkeys([BASELINE.name, *(name.strip() for name in names.split(","))]))
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise ConfigError(f"no ablation {unknown[0]!r}; there are {', '.join(found)}")
    return [found[name] for name in wanted]
