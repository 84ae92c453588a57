"""Chooses a cloud for each request, and tracks the load, outcomes and circuit breaker of each cloud."""

import asyncio
import logging
import time
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import xxhash
from msgspec.structs import replace

from common.cloud_client.circuit_breaker import BreakerState, CircuitBreaker
from common.cloud_client.openai_client import OpenAIClient
from common.config_schema import CloudEntry, CommunicationConfig, HttpClientConfig
from common.config_values import Secret
from common.enums import CloudKind
from common.errors import ConfigError, EndpointError, FrameworkError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy, WrongProtocol
from common.http.retry import NoAnswer, NotListening

log = logging.getLogger(__name__)
T = TypeVar("T")

CLIENTS: dict[CloudKind, Callable[[str, HttpClientConfig, Secret], HTTPClient]] = {
    CloudKind.EDGECLOUD: partial(HTTPClient, check_protocol=True),
    CloudKind.OPENAI: OpenAIClient,
}
"""What speaks with a cloud of each kind."""
AFFINITY_TOKENS = 64
"""Prompts whose first tokens, this many, are the same go to the same cloud, whose prefix cache then holds them."""
MAX_LOAD_FACTOR = 1.25
"""A cloud takes up to this many times the mean load; further prompts go to their next cloud."""


class CallOutcome(StrEnum):
    """How a call to a cloud ended."""

    OK = "ok"
    REFUSED = "refused"
    """A RequestError: the request was wrong, the cloud works."""
    BUSY = "busy"
    """A 429."""
    FAILED = "failed"
    """Any other EndpointError."""
    CANCELLED = "cancelled"
    """The edge left before the end."""


def outcome_of(error: EndpointError | RequestError) -> CallOutcome:
    """The outcome of a call that raised `error`."""
    if isinstance(error, RequestError):
        return CallOutcome.REFUSED
    return CallOutcome.BUSY if isinstance(error, Busy) else CallOutcome.FAILED


def choose(token_ids: Sequence[int], loads: Mapping[str, int]) -> str:
    """The URL of the cloud for a prompt; `loads` holds the calls in flight of each cloud (at least one), by URL.

    Rendezvous hashing (Thaler and Ravishankar 1998) scores each cloud for a prompt prefix, so that adding or removing a
    cloud moves only that cloud's share. Bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018) limit the choice to
    clouds with less than MAX_LOAD_FACTOR times the mean load, counting the new call.
    """
    prefix = array("i", token_ids[:AFFINITY_TOKENS]).tobytes()
    limit = MAX_LOAD_FACTOR * (sum(loads.values()) + 1) / len(loads)
    candidates = [url for url, load in loads.items() if load < limit]
    return max(candidates, key=lambda url: (xxhash.xxh3_64_intdigest(url.encode() + b"\0" + prefix), url))


@dataclass(eq=False, slots=True)
class Cloud:
    """One cloud: its HTTP clients, its circuit breaker, and the load and outcomes of its calls."""

    key: str
    """The path of the config key that names it."""
    client: HTTPClient
    prober: HTTPClient
    """Opens a new connection for every probe: the pooled ones may be broken after a loss."""
    breaker: CircuitBreaker
    entry: CloudEntry
    """Its part of the config."""
    in_flight: int = 0
    """Calls and streams that are running."""
    last_error: str = ""
    """The message of the last failed call or probe."""
    outcomes: dict[CallOutcome, int] = field(default_factory=lambda: dict.fromkeys(CallOutcome, 0))
    breaker_opened: asyncio.Event = field(default_factory=asyncio.Event)
    """Set from the opening of the breaker until a probe closes it."""

    @property
    def url(self) -> str:
        return self.client.base_url

    def stats(self) -> dict[str, Any]:
        """This cloud's entry in GET /stats."""
        calls = {outcome.value: count for outcome, count in self.outcomes.items()}
        breaker = {"state": self.breaker.state.value, "openings": self.breaker.openings}
        state = {"breaker": breaker, "last_error": self.last_error, "in_flight": self.in_flight, "calls": calls}
        return state | self.client.get_client_stats()


clouds_called: ContextVar[list[Cloud] | None] = ContextVar("clouds_called", default=None)
"""Those that the running answer has called, in order; None where nobody wants to know."""


class CloudPool:
    """All clouds of a configuration. Owns their connections and one task per cloud that probes it while it is lost.

    Use `async with`, from one event loop. Callers count `failovers` and `degraded_answers`.
    """

    def __init__(self, config: CommunicationConfig | None = None) -> None:
        config = config or CommunicationConfig()
        self._clouds = [_make_cloud(key, entry, config) for key, entry in config.entries.items()]
        self._probe_tasks: list[asyncio.Task[None]] = []
        self.failovers = 0
        """Requests that continued on another cloud."""
        self.degraded_answers = 0
        """Answers for which no cloud could be used."""

    async def __aenter__(self) -> Self:
        self._probe_tasks = [asyncio.create_task(self._probe_while_lost(cloud)) for cloud in self._clouds]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for task in self._probe_tasks:
            task.cancel()
        await asyncio.gather(*self._probe_tasks, return_exceptions=True)
        for cloud in self._clouds:
            await cloud.client.close()
            await cloud.prober.close()

    def __iter__(self) -> Iterator[Cloud]:
        return iter(self._clouds)

    async def check_protocols(self) -> None:
        """Raises ConfigError if a cloud speaks another protocol; clouds that cannot be reached yet are ignored."""
        results = await asyncio.gather(*(self._probe(cloud) for cloud in self._clouds))
        for cloud, error in zip(self._clouds, results, strict=True):
            if isinstance(error, WrongProtocol):
                raise ConfigError(f"{cloud.key}: {error.message}")

    def pick(self, token_ids: Sequence[int], excluding: Collection[Cloud] = ()) -> Cloud:
        """The cloud for a prompt; raises EndpointError at once if no cloud with a closed breaker is left."""
        usable = {cloud.url: cloud for cloud in self._clouds if cloud.breaker.closed and cloud not in excluding}
        if not usable:
            errors = [cloud.last_error for cloud in self._clouds if cloud.last_error]
            raise EndpointError("; ".join(errors) or "no cloud is left")
        return usable[choose(token_ids, {url: cloud.in_flight for url, cloud in usable.items()})]

    async def get(self, path: str, type_: type[T]) -> T:
        """GET `path` from one of the usable clouds; raises EndpointError, at once if there is none."""
        cloud = self.pick(())
        with self.track_call(cloud):
            return await cloud.client.get(path, type_)

    @contextmanager
    def track_call(self, cloud: Cloud) -> Iterator[None]:
        """Counts the block as one call in flight, and records its outcome."""
        self.begin_call(cloud)
        outcome, failure = CallOutcome.CANCELLED, None
        try:
            yield
            outcome = CallOutcome.OK
        except (EndpointError, RequestError) as error:
            outcome, failure = outcome_of(error), error
            raise
        finally:
            self.end_call(cloud, outcome, failure)

    def begin_call(self, cloud: Cloud) -> None:
        """Counts a call to `cloud` as in flight; `end_call` must follow."""
        cloud.in_flight += 1
        if (called := clouds_called.get()) is not None:
            called.append(cloud)

    def end_call(self, cloud: Cloud, outcome: CallOutcome, failure: FrameworkError | None = None) -> None:
        """Records the outcome of a call, with the message of its failure, and updates the breaker."""
        cloud.in_flight -= 1
        cloud.outcomes[outcome] += 1
        if outcome in (CallOutcome.OK, CallOutcome.REFUSED):
            cloud.breaker.record_success()
        elif outcome is CallOutcome.FAILED:
            cloud.last_error = failure.message if failure else ""
            cloud.breaker.record_failure(time.monotonic())
            if not cloud.breaker.closed and not cloud.breaker_opened.is_set():
                cloud.breaker_opened.set()
                if isinstance(failure, NotListening | NoAnswer) and not cloud.outcomes[CallOutcome.OK]:
                    log.info("%s does not answer yet, and gets no calls until it is ready", cloud.url)
                else:
                    log.warning("%s; it gets no calls until a probe succeeds", cloud.last_error)

    def stats(self) -> dict[str, Any]:
        """The clouds' part of GET /stats."""
        endpoints = {cloud.url: cloud.stats() for cloud in self._clouds}
        return {"endpoints": endpoints, "failovers": self.failovers, "degraded_answers": self.degraded_answers}

    async def _probe_while_lost(self, cloud: Cloud) -> None:
        """Probes a lost cloud every `probe_seconds` until a probe succeeds."""
        while True:
            await cloud.breaker_opened.wait()
            while cloud.breaker.state is BreakerState.OPEN:
                await asyncio.sleep(cloud.breaker.seconds_to_probe(time.monotonic()))
                cloud.breaker.begin_probe(time.monotonic())
                error = await self._probe(cloud)
                cloud.breaker.end_probe(healthy=error is None)
                cloud.last_error = error.message if error else cloud.last_error
            cloud.breaker_opened.clear()
            if cloud.outcomes[CallOutcome.OK]:
                log.warning("%s is ready again", cloud.url)
            else:
                log.info("%s is ready", cloud.url)

    async def _probe(self, cloud: Cloud) -> EndpointError | None:
        """The error of GET /ready; None if the cloud is ready."""
        try:
            await cloud.prober.check_ready()
        except EndpointError as error:
            return error
        return None


def _make_cloud(key: str, entry: CloudEntry, config: CommunicationConfig) -> Cloud:
    http, breaker, api_key = config.http_client, config.breaker, entry.api_key or config.cloud_api_key
    plain = replace(http, optimized=False, timeout=breaker.probe_seconds)  # a probe ends before the next one begins
    client_of = CLIENTS[entry.kind]
    return Cloud(
        key,
        client_of(entry.url, http, api_key),
        client_of(entry.url, plain, api_key),
        CircuitBreaker(breaker.failures, breaker.probe_seconds),
        entry,
    )
