"""The limits and the weight of each tenant, as the config has them."""

from collections.abc import Callable
from dataclasses import dataclass

from common.config_edge import KeyConfig, QuotasConfig
from common.http.auth import tenant_name


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What one tenant may ask for; 0: no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0
    cloud_tokens_per_day: int = 0
    cost_per_day: float = 0.0
    weight: float = 1.0


LimitsOf = Callable[[str], TenantLimits]
"""From a tenant's name to its limits."""
LIMITS = tuple(name for name in TenantLimits.__dataclass_fields__ if name != "weight")


def no_limits(_: str) -> TenantLimits:
    return TenantLimits()


def limits_of(config: QuotasConfig) -> LimitsOf:
    """The limits by tenant; those that the config does not name have the limits of all keys."""
    of_all = TenantLimits(**{name: getattr(config, name) for name in LIMITS})
    named = {tenant_name(entry.api_key): _own(entry, of_all) for entry in config.keys}
    return lambda tenant: named.get(tenant, of_all)


def weights_of(config: QuotasConfig) -> Callable[[str], float]:
    """The weight by tenant."""
    limits = limits_of(config)
    return lambda tenant: limits(tenant).weight


def _own(entry: KeyConfig, of_all: TenantLimits) -> TenantLimits:
    given = {name: getattr(entry, name) for name in LIMITS}
    own = {name: getattr(of_all, name) if value is None else value for name, value in given.items()}
    return TenantLimits(**own, weight=entry.weight)
