"""Counts events by name for each tenant, so that none can read from the figures what others have asked."""

from collections import Counter, defaultdict


class TenantCounters:
    """Written in one thread, read in any. `names` are reported from the start, with 0."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, tenant: str, **counts: int) -> None:
        self._counts[tenant].update(counts)

    def of(self, tenant: str | None = None) -> dict[str, int]:
        """The counts of one tenant or (None) of all together."""
        counted = list(self._counts.values()) if tenant is None else [self._counts.get(tenant, Counter())]
        return {name: sum(counts[name] for counts in counted) for name in self._names}
