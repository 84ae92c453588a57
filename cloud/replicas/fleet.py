"""The front's view of its replicas: which of them run and are ready, what each one works on, and which to choose."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
from cachetools import TTLCache

from cloud.kv_cache import VLLMKVCache
from cloud.replicas import block_changes
from cloud.replicas.choice import choose
from cloud.replicas.replica import Replica, ReplicaProcess
from cloud.replicas.request_key import RequestKey
from common.errors import EngineError, StartError
from common.http.first_completed import first_completed

log = logging.getLogger(__name__)

MAX_SESSIONS = 65536
SESSION_SECONDS = 600.0
"""As long as a replica itself keeps a session that is not used."""
CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class FleetTiming:
    """All in seconds: `probe` between two probes of a replica, `patience` for the reply to one.

    A replica that is silent for `silences` probes in a row is killed; one that loads its model, for LOADING times as
    many. Pauses before a start that failed before double from `first_pause` to `longest_pause`. One that is replaced
    gets `drain` for what it works on, which is more than it takes itself.
    """

    probe: float = 0.5
    patience: float = 4.0
    silences: int = 3
    first_pause: float = 1.0
    longest_pause: float = 30.0
    drain: float = 15.0


LOADING = 5


class Fleet:
    """All replicas. Owns one task for each, which keeps it running and knows its state; use `async with`."""

    def __init__(self, processes: Mapping[str, ReplicaProcess], timing: FleetTiming = FleetTiming()) -> None:
        self.replicas = [Replica(name, process) for name, process in processes.items()]
        self.index = VLLMKVCache()
        """What the replicas' KV caches hold, from their KV events."""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the StartError of a first start that failed, since waiting does not mend a wrong model; or a fault of
        this class, without which nobody would start a replica again."""
        self.timing = timing
        self._was_ready = self._closing = False
        """Whether any replica has been ready."""
        self._sessions: TTLCache[str, str] = TTLCache(MAX_SESSIONS, SESSION_SECONDS)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Fleet":
        self._tasks = [asyncio.create_task(self._keep(replica)) for replica in self.replicas]
        for task in self._tasks:
            task.add_done_callback(self._fail_with)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(replica.process.stop() for replica in self.replicas))

    def pick(
        self,
        key: RequestKey,
        excluding: Collection[str] = (),
        load: Callable[[Replica], int] = lambda replica: replica.in_flight,
    ) -> Replica:
        """The replica for a request; raises EngineError where none is left.

        `excluding`: URLs, because a replica that was started again has another one, and is worth another try.
        """
        usable = {one.name: one for one in self.replicas if one.usable and one.url not in excluding}
        if not usable:
            raise EngineError("no replica can take this: " + "; ".join(map(_state, self.replicas)))
        held = self._held(key) if key.token_ids and len(usable) > 1 else {}
        loads = {name: load(one) for name, one in usable.items()}
        name = choose(loads, key.token_ids, held, self._sessions.get(key.session))
        if key.session:
            self._sessions[key.session] = name
        return usable[name]

    def _held(self, key: RequestKey) -> dict[str, int]:
        held = defaultdict[str, int](int)
        for name, tokens in self.index.longest_prefix(key.token_ids, key.salt).items():
            replica = block_changes.replica_of(name)
            held[replica] = max(held[replica], tokens)
        return held

    def check_ready(self) -> None:
        """Raises EngineError unless a replica takes requests."""
        if not any(one.usable for one in self.replicas):
            raise EngineError("; ".join(map(_state, self.replicas)))

    def _fail_with(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)

    async def _keep(self, replica: Replica) -> None:
        """Keeps one replica running; ends only where its first start fails."""
        pause = self.timing.first_pause
        while True:
            try:
                async with self._running(replica):
                    await first_completed(replica.process.ended(), self._watch(replica), self._follow(replica))
            except StartError as error:
                replica.problem = error.message
                log.error("replica %s: %s", replica.name, error.message)
                if not self._was_ready:
                    raise
                replica.settled.set()
                await asyncio.sleep(pause)
                pause = min(2 * pause, self.timing.longest_pause)
            else:
                pause = self.timing.first_pause

    @asynccontextmanager
    async def _running(self, replica: Replica) -> AsyncIterator[None]:
        """From a replica's start to its end, after which nothing waits for it any more."""
        replica.address = await replica.process.start()
        replica.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            auto_decompress=False,
        )
        try:
            yield
        finally:
            if not (replica.draining or self._closing):
                replica.losses += 1
                log.warning("replica %s has ended, and is started again", replica.name)
            replica.problem, replica.draining = "it is being started again", False
            replica.settled.clear()
            session, replica.http = replica.http, None
            await session.close()
            block_changes.forget(self.index, replica.name)
            for key in [key for key, name in self._sessions.items() if name == replica.name]:
                self._sessions.pop(key, None)  # it may expire meanwhile

    async def _watch(self, replica: Replica) -> None:
        """Asks again and again whether the replica is ready; kills it, and returns, when it answers nothing."""
        silent, limit = 0, LOADING * self.timing.silences
        while silent < limit:
            await asyncio.sleep(self.timing.probe)
            if replica.draining:  # it accepts no connections then
                continue
            try:
                async with asyncio.timeout(self.timing.patience):
                    replica.problem, silent = await _problem(replica), 0
            except (TimeoutError, aiohttp.ClientError):
                replica.problem, silent = "it does not answer", silent + 1
            if replica.usable:
                limit, self._was_ready = self.timing.silences, True
                replica.settled.set()
        log.error("replica %s answers nothing, and is killed", replica.name)
        await replica.process.kill()

    async def _follow(self, replica: Replica) -> None:
        async for changes in replica.process.changes():
            block_changes.enter(self.index, replica.name, changes)
        await asyncio.Event().wait()  # that the replica has ended, others notice

    @contextmanager
    def using(self, replica: Replica) -> Iterator[None]:
        """Around a request that `replica` works on."""
        replica.in_flight += 1
        replica.served += 1
        try:
            yield
        finally:
            replica.in_flight -= 1


async def _problem(replica: Replica) -> str:
    """Why the replica takes no requests; empty if it does."""
    async with replica.http_session().get(f"{replica.url}/ready") as response:
        body = await response.json()
    return "" if response.status == 200 else str(body["error"]["message"])


def _state(replica: Replica) -> str:
    why = replica.problem or ("it drains" if replica.draining else "it was asked")
    return f"replica {replica.name}: {why}"
