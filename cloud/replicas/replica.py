"""One replica: what runs it, and what the front knows of it."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import aiohttp

from cloud.replicas.block_changes import BlockChange


class ReplicaAddress(NamedTuple):
    """Where a replica answers, and its process id there."""

    url: str
    pid: int


NOWHERE = ReplicaAddress("", 0)


class ReplicaProcess(Protocol):
    """What runs one replica, and runs it again after its end."""

    async def start(self) -> ReplicaAddress:
        """Returns when the replica's port is open; starts it unless it is being started again anyway."""

    async def ended(self) -> None:
        """Returns when the running replica has ended; raises StartError when its model could not be loaded."""

    def changes(self) -> AsyncGenerator[list[BlockChange], None]:
        """The changes of its KV cache, from its contents on; ends with the replica."""

    async def drain(self) -> None:
        """Lets it finish what it works on, and take nothing new, for as long as its configuration says."""

    async def stop(self) -> None:
        """Ends it, with all that it started; the next start makes another one."""

    async def kill(self) -> None:
        """Ends it at once, whatever state it is in."""


@dataclass(eq=False)
class Replica:
    """One replica as the front sees it."""

    name: str
    process: ReplicaProcess
    address: ReplicaAddress = NOWHERE
    http: aiohttp.ClientSession | None = None
    """Of the running replica; closing it fails all that waits for this replica."""
    problem: str = "it is being started"
    """Why it takes no requests; empty if it does."""
    draining: bool = False
    in_flight: int = 0
    """Requests, and answers of streams."""
    connections: int = 0
    """Connections of split models."""
    served: int = 0
    """Requests so far."""
    losses: int = 0
    """How often it has ended unasked."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the replica is ready, or has failed to start; until then it is being started."""

    @property
    def usable(self) -> bool:
        return not self.problem and not self.draining

    @property
    def running(self) -> bool:
        return self.http is not None

    @property
    def url(self) -> str:
        return self.address.url

    def http_session(self) -> aiohttp.ClientSession:
        """Raises ClientConnectionError where the replica is lost meanwhile."""
        if self.http is None:
            raise aiohttp.ClientConnectionError(f"replica {self.name} is lost")
        return self.http

    def stats(self) -> dict[str, Any]:
        state = "ready" if self.usable else "draining" if self.draining else self.problem
        counts = {"in_flight": self.in_flight, "connections": self.connections, "served": self.served}
        return {"state": state, "url": self.url, "pid": self.address.pid, "losses": self.losses, **counts}
