"""A fake cloud for split models: its tokens depend only on the position asked for.

Its attributes set the faults it shows; it keeps what it was sent and asked, for tests to check.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from common.cloud_client.pool import CloudPool
from common.cloud_client.split_session import CloudToken
from common.config_schema import CommunicationConfig
from common.errors import EndpointError
from common.types import Sampling, StateEncoding
from edge.llama.batch import States
from edge.split.cloud_tail import SplitClouds

NOWHERE = "http://127.0.0.1:9"


def right(position: int) -> int:
    """The cloud's token at `position`; never one that ends an answer."""
    return 300 + 37 * position % 3000


@dataclass
class FakeSession:
    """The states of one answer, in the order received."""

    cloud: "FakeSplitCloud"
    fingerprint: str
    encoding: StateEncoding
    pieces: list[States] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    closed: bool = False
    begun_with: int = 0
    """Positions that it took over from the session of an earlier answer."""

    async def __aenter__(self) -> "FakeSession":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True

    def successor(self, keep: int) -> "FakeSession":
        assert 1 <= keep <= self.positions, "positions that were given to `send`"
        session = self.cloud.session(self.fingerprint, self.encoding)
        session.pieces.append(self.states[:keep])
        session.begun_with = keep
        self.close()
        return session

    @property
    def positions(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def states(self) -> States:
        return np.concatenate(self.pieces)

    def send(self, states: States) -> None:
        assert len(states), "nothing was sent"
        self.pieces.append(states.copy())
        self.bytes_up += states.nbytes // 2
        self.log.append(f"send {len(states)}")

    async def flush(self) -> None:
        self.log.append("flush")

    async def token(self, sampling: Sampling, deadline_seconds: float, top: int = 0) -> CloudToken:
        self.log.append("ask")
        self.cloud.asked.append(self.positions)
        self.cloud.samplings.append(sampling)
        self.cloud.deadlines.append(deadline_seconds)
        try:
            async with asyncio.timeout(deadline_seconds):
                await asyncio.sleep(self.cloud.seconds)
        except TimeoutError as error:
            raise EndpointError(f"the cloud gave no token within {deadline_seconds:g} s") from error
        if (fault := self.cloud.fault(len(self.cloud.asked))) is not None:
            raise fault
        self.bytes_down += 50
        token = self.cloud.model(self.positions)
        likeliest = [(token + place, -0.1 - place) for place in range(top)]
        return CloudToken(
            token_id=token, confidence=0.9, logprob=-0.1, cloud_ms=1.0, computed=1, cached=0, top=likeliest
        )


class FakeSplitCloud:
    """One cloud that serves every URL of a configuration."""

    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []
        self.asked: list[int] = []
        """The position of each question."""
        self.samplings: list[Sampling] = []
        """How its token is to be drawn."""
        self.deadlines: list[float] = []
        """Of each question, in seconds."""
        self.seconds = 0.0
        self.model: Callable[[int], int] = right
        self.fault: Callable[[int], Exception | None] = lambda number: None
        """The error to raise instead of a token for the question of this number, from 1 on; None: no error."""

    async def close(self) -> None: ...

    def session(self, fingerprint: str, encoding: StateEncoding = StateEncoding.FP16) -> FakeSession:
        self.sessions.append(FakeSession(self, fingerprint, encoding))
        return self.sessions[-1]

    def clouds(self, config: CommunicationConfig | None = None) -> SplitClouds:
        """As many clouds as `config` names, all of them this one."""
        clouds = CloudPool(config or CommunicationConfig(cloud_endpoint=NOWHERE))
        return SplitClouds(clouds, cast(Any, lambda client: self))
