"""Keeps each tenant within its rates: requests and tokens per minute, and requests at a time."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter

from common.errors import RateLimitError
from common.http.request_context import current_tenant
from edge.tenants.limits import LimitsOf, TenantLimits
from edge.tenants.token_bucket import DEBT_MINUTES, ROUNDING, TokenBucket

AT_ONCE_SECONDS = 1
"""`Retry-After` where as many requests run as may: nobody knows when one ends."""


class Rates:
    """One tenant's state: its running requests, and a token bucket for each rate that is limited."""

    def __init__(self, limits: TenantLimits, now: float) -> None:
        self.limits = limits
        both = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self.per_minute = {what: limit for what, limit in both.items() if limit}
        self._buckets = {what: TokenBucket(limit, now) for what, limit in self.per_minute.items()}
        self.running = 0

    def seconds_until(self, what: str, amount: float, now: float) -> float:
        """How long until `amount` may be taken; 0: now."""
        if what not in self._buckets:
            return 0.0
        return self._buckets[what].seconds_until(amount, self.per_minute[what], now)

    def take(self, what: str, amount: float, now: float) -> None:
        """Takes `amount`, whether or not that is there."""
        if what in self._buckets:
            self._buckets[what] = self._buckets[what].taken(amount, self.per_minute[what], now)

    def correction(self, what: str, guessed: float, used: float) -> float:
        """What is left to take where `guessed` was taken for `used`; neither takes more than a bucket can lose."""
        most = (1 + DEBT_MINUTES) * self.per_minute.get(what, 0)
        return min(used, most) - min(guessed, most)

    def left(self, what: str, now: float) -> float:
        """Below 0: a debt."""
        return self._buckets[what].refilled(self.per_minute[what], now).level


class Quotas:
    """Owns the rates of all tenants, which start anew with the server. Used from one event loop."""

    def __init__(
        self, limits: LimitsOf, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits, self._clock = limits, clock
        self._rates: dict[str, Rates] = {}
        help_text = "Requests beyond a limit of their API key."
        self._refusals = Counter("edgecloud_rate_limited", help_text, ["limit"], registry=registry)

    @contextmanager
    def request(self, tenant: str) -> Iterator[None]:
        """Around one request; raises RateLimitError for one too many, which does not count.

        Also while the tenant owes tokens: its prompt need not be read first.
        """
        rates, now = self._of(tenant), self._clock()
        self._check(rates, "requests", 1, now)
        self._check(rates, "tokens", 1, now)
        if 0 < rates.limits.concurrent_requests <= rates.running:
            self._refusals.labels("concurrent").inc()
            message = f"this key may have {rates.limits.concurrent_requests} requests at a time"
            raise RateLimitError(message, retry_after=AT_ONCE_SECONDS)
        rates.take("requests", 1, now)
        rates.running += 1
        try:
            yield
        finally:
            rates.running -= 1

    def admit_prompt(self, tokens: int) -> None:
        """Counts a prompt of the current tenant; raises RateLimitError for one that has to wait."""
        rates, now = self._of(current_tenant.get()), self._clock()
        self._check(rates, "tokens", tokens, now)
        rates.take("tokens", tokens, now)

    def settle_prompt(self, guessed: int, tokens: int) -> None:
        """Puts what the prompt had, 0 if nobody read it, in the place of what was admitted as a guess."""
        rates = self._of(current_tenant.get())
        rates.take("tokens", rates.correction("tokens", guessed, tokens), self._clock())

    def record(self, tokens: int) -> None:
        """Counts tokens that were computed for the current tenant; beyond its limit they become a debt."""
        self._of(current_tenant.get()).take("tokens", tokens, self._clock())

    def headers(self, tenant: str) -> dict[str, str]:
        """The headers of a response, as OpenAI has them; none of what has no limit."""
        rates, now = self._of(tenant), self._clock()
        found = dict[str, str]()
        for what, limit in rates.per_minute.items():
            found[f"x-ratelimit-limit-{what}"] = str(limit)
            found[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(rates.left(what, now) + ROUNDING)))
            found[f"x-ratelimit-reset-{what}"] = duration(rates.seconds_until(what, limit, now))
        return found

    def stats(self, tenant: str | None = None) -> dict[str, dict[str, float]]:
        """By tenant, all of them (None) or one: the limits, and what is left; a debt is below 0."""
        now, names = self._clock(), list(self._rates) if tenant is None else [tenant]
        return {name: self._row(self._of(name), now) for name in names}

    def _row(self, rates: Rates, now: float) -> dict[str, float]:
        row: dict[str, float] = {"weight": rates.limits.weight, "requests_now": rates.running}
        for what, limit in rates.per_minute.items():
            row |= {f"{what}_per_minute": limit, f"{what}_left": rates.left(what, now)}
        return row

    def _of(self, tenant: str) -> Rates:
        if tenant not in self._rates:
            self._rates[tenant] = Rates(self._limits(tenant), self._clock())
        return self._rates[tenant]

    def _check(self, rates: Rates, what: str, amount: float, now: float) -> None:
        if seconds := rates.seconds_until(what, amount, now):
            self._refusals.labels(what).inc()
            wait = math.ceil(seconds)
            message = f"this key may use {rates.per_minute[what]} {what} a minute: try again in {wait} s"
            raise RateLimitError(message, retry_after=wait)


def duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `7.66s`, `6m0s`."""
    seconds = round(seconds, 3)
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{round(seconds, 2):g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
