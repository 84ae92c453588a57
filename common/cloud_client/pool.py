"""The clouds that one program asks: which one next, which are lost, what came of it. Knows nothing of what is asked."""

import asyncio
import logging
import time
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Self, TypeVar

import xxhash
from msgspec.structs import replace

from common.cloud_client.circuit_breaker import Breaker, State
from common.config_schema import CommunicationConfig
from common.errors import ConfigError, EndpointError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy, WrongProtocol

log = logging.getLogger(__name__)
T = TypeVar("T")

AFFINITY_TOKENS = 64
"""Prompts that begin with the same tokens go to the same cloud, whose prefix cache then holds them."""
FAIR_SHARE = 1.25
"""A cloud takes up to this many times the mean load, then the prompt's next cloud has its turn."""


class CallOutcome(StrEnum):
    """How a call to a cloud ended: refused is the request's fault, busy a 429, cancelled: our side left early."""

    OK = "ok"
    REFUSED = "refused"
    BUSY = "busy"
    FAILED = "failed"
    CANCELLED = "cancelled"


def outcome_of(error: EndpointError | RequestError) -> CallOutcome:
    """What a call that ended with `error` counts as."""
    if isinstance(error, RequestError):
        return CallOutcome.REFUSED
    return CallOutcome.BUSY if isinstance(error, Busy) else CallOutcome.FAILED


def choose(token_ids: Sequence[int], loads: Mapping[str, int]) -> str:
    """The cloud for a prompt, of at least one, by URL; `loads` are calls under way there.

    Rendezvous hashing (Thaler and Ravishankar 1998): each cloud scores each beginning, so that one which comes or goes
    moves only its own share. With bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018): the best score that is not
    above its fair share, counting the call to come.
    """
    beginning = array("i", token_ids[:AFFINITY_TOKENS]).tobytes()
    bound = FAIR_SHARE * (sum(loads.values()) + 1) / len(loads)
    room = [url for url, load in loads.items() if load < bound]
    return max(room, key=lambda url: (xxhash.xxh3_64_intdigest(url.encode() + b"\0" + beginning), url))


@dataclass(eq=False, slots=True)
class Cloud:
    """One cloud: its connections, whether it is asked, how much it is doing for us, and how its calls ended."""

    key: str
    """The path of the config key that names it."""
    client: HTTPClient
    prober: HTTPClient
    """Makes a new connection for every probe: those of the pool may be as lost as the cloud was."""
    breaker: Breaker
    in_flight: int = 0
    reason: str = ""
    """Why its last call failed."""
    outcomes: dict[CallOutcome, int] = field(default_factory=lambda: dict.fromkeys(CallOutcome, 0))
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return self.client.base_url

    def stats(self) -> dict[str, Any]:
        calls = {outcome.value: count for outcome, count in self.outcomes.items()}
        breaker = {"state": self.breaker.state.value, "openings": self.breaker.openings}
        return {"breaker": breaker, "in_flight": self.in_flight, "calls": calls, **self.client.get_client_stats()}


class CloudPool:
    """All clouds of a configuration. Owns their connections and a task for each that looks whether a lost one is back.

    `async with`; used from one event loop. `failovers` and `degraded` are counted by who sees them happen.
    """

    def __init__(self, config: CommunicationConfig | None = None) -> None:
        config = config or CommunicationConfig()
        self._probe_seconds = config.breaker.probe_seconds
        self._all = [_cloud(key, url, config) for key, url in config.clouds.items()]
        self._watches: list[asyncio.Task[None]] = []
        self.failovers = 0
        """Requests that went on with another cloud."""
        self.degraded = 0
        """Answers that had to do without any."""

    async def __aenter__(self) -> Self:
        self._watches = [asyncio.create_task(self._watch(cloud)) for cloud in self._all]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for cloud in self._all:
            await cloud.client.close()
            await cloud.prober.close()

    def __iter__(self) -> Iterator[Cloud]:
        return iter(self._all)

    async def greet(self) -> None:
        """Raises ConfigError if a cloud that is there speaks another protocol; one that is not yet there may come."""
        results = await asyncio.gather(*(self._probed(cloud) for cloud in self._all))
        for cloud, error in zip(self._all, results, strict=True):
            if isinstance(error, WrongProtocol):
                raise ConfigError(f"{cloud.key}: {error.message}")

    def pick(self, token_ids: Sequence[int], excluding: Collection[Cloud] = ()) -> Cloud:
        """The cloud to ask about a prompt; raises EndpointError, at once, when none can be asked."""
        closed = {cloud.url: cloud for cloud in self._all if cloud.breaker.closed and cloud not in excluding}
        if not closed:
            raise EndpointError("; ".join(cloud.reason for cloud in self._all if cloud.reason) or "no cloud is left")
        return closed[choose(token_ids, {url: cloud.in_flight for url, cloud in closed.items()})]

    async def get(self, path: str, type_: type[T]) -> T:
        """What one of the clouds that can be asked says; raises EndpointError, at once if there is none."""
        cloud = self.pick(())
        with self.asking(cloud):
            return await cloud.client.get(path, type_)

    @contextmanager
    def asking(self, cloud: Cloud) -> Iterator[None]:
        """Around one call: counted as load while it lasts, its end told to the breaker."""
        self.began(cloud)
        outcome, reason = CallOutcome.CANCELLED, ""
        try:
            yield
            outcome = CallOutcome.OK
        except (EndpointError, RequestError) as error:
            outcome, reason = outcome_of(error), error.message
            raise
        finally:
            self.ended(cloud, outcome, reason)

    def began(self, cloud: Cloud) -> None:
        """A call to `cloud` begins; `ended` tells what came of it."""
        cloud.in_flight += 1

    def ended(self, cloud: Cloud, outcome: CallOutcome, reason: str = "") -> None:
        cloud.in_flight -= 1
        cloud.outcomes[outcome] += 1
        if outcome in (CallOutcome.OK, CallOutcome.REFUSED):
            cloud.breaker.succeeded()
        elif outcome is CallOutcome.FAILED:
            cloud.reason = reason
            cloud.breaker.failed(time.monotonic())
            if not cloud.breaker.closed and not cloud.opened.is_set():
                cloud.opened.set()
                log.warning("%s; it is not asked until it is back", cloud.reason)

    def stats(self) -> dict[str, Any]:
        """Figures for GET /stats."""
        each = {cloud.url: cloud.stats() for cloud in self._all}
        return {"endpoints": each, "failovers": self.failovers, "degraded_answers": self.degraded}

    async def _watch(self, cloud: Cloud) -> None:
        """Looks for a lost cloud every `probe_seconds` until it is back."""
        while True:
            await cloud.opened.wait()
            while cloud.breaker.state is State.OPEN:
                await asyncio.sleep(cloud.breaker.probe_in(time.monotonic()))
                cloud.breaker.probe(time.monotonic())
                error = await self._probed(cloud)
                cloud.breaker.probed(healthy=error is None)
                cloud.reason = error.message if error else cloud.reason
            cloud.opened.clear()
            log.warning("%s is back", cloud.url)

    async def _probed(self, cloud: Cloud) -> EndpointError | None:
        """What keeps a cloud from being asked now; None if it is ready."""
        try:
            await cloud.prober.check_ready()
        except EndpointError as error:
            return error
        return None


def _cloud(key: str, url: str, config: CommunicationConfig) -> Cloud:
    http, breaker = config.http_client, config.breaker
    plain = replace(http, optimized=False, timeout=breaker.probe_seconds)  # a probe ends before the next one begins
    return Cloud(
        key,
        HTTPClient(url, http, config.cloud_api_key, check_protocol=True),
        HTTPClient(url, plain, config.cloud_api_key, check_protocol=True),
        Breaker(breaker.failures, breaker.probe_seconds),
    )
