"""The cloud's half of the layer split in one place: its engine, sessions, route and metrics. Decides nothing itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from cloud.engine.supervisor import EngineKeeper, SupervisorTiming
from cloud.metrics import CloudMetrics
from cloud.split.connection import Served
from cloud.split.context_manager import CloudContextManager, Limits
from cloud.split.engine import TailEngine
from cloud.split.pool import TailPool
from cloud.split.route import SplitRoute
from common.config_schema import CloudSplitConfig
from common.errors import NotFoundError
from common.http_server import FATAL
from common.protocol.split_manifest import read_manifest


class SplitService:
    """Owns the tail's engine, beside the whole model's, and all sessions; works as long as the app that it is added to.

    `admit` is entered around each question with the length of its sequence.
    """

    def __init__(
        self, config: CloudSplitConfig, pace: SupervisorTiming, admit: Callable[[int], AbstractContextManager[object]]
    ) -> None:
        """Raises ConfigError for a manifest that cannot be read, or a tail that is not the manifest's."""
        path = Path(config.manifest)
        self.manifest = read_manifest(path)
        folder = path if path.is_dir() else path.parent
        self.engine = TailEngine(self.manifest.check_tail(folder), config.engine_args)
        limits = Limits(config.session_bytes, config.total_bytes, config.session_seconds)
        self.contexts = CloudContextManager(limits)
        self.pool = TailPool(self.engine, self.contexts)
        self.restarts = 0
        self.keeper = EngineKeeper(self.engine, pace, self._on_loss)
        self._admit = admit
        self._seconds = config.session_seconds
        self._began = False

    def add_to(self, app: web.Application) -> None:
        """Adds the route, and what runs behind it."""
        app.cleanup_ctx.append(self._run)
        served = Served(self.manifest, self.contexts, self.pool, self._work)
        app.router.add_get("/split", SplitRoute(served).handle)

    def check_started(self) -> None:
        """Raises EngineError until the engine is up for the first time; later losses are told where it is asked."""
        if not self._began:
            self.keeper.check()
            self._began = True

    def stats(self) -> dict[str, Any]:
        """For GET /stats."""
        contexts, pool = self.contexts, self.pool
        return {
            "ready": self.keeper.ready,
            "sessions": len(contexts),
            "bytes": contexts.bytes,
            "states_received": contexts.received,
            "states_duplicate": contexts.duplicates,
            "dropped": dict(contexts.dropped),
            "live_requests": len(pool),
            "tokens": pool.drawn,
            "computed": pool.computed,
            "cached": pool.cached,
            "layer_tokens": self._layers * pool.computed,
            "engine_restarts": self.restarts,
        }

    def show(self, metrics: CloudMetrics) -> None:
        """What /metrics asks at each scrape."""
        contexts, pool = self.contexts, self.pool
        metrics.gauge("split_sessions", "Sessions of split models.", lambda: len(contexts))
        metrics.gauge("split_session_bytes", "Bytes of hidden states that no KV holds yet.", lambda: contexts.bytes)
        metrics.gauge("split_live_requests", "Sessions whose KV the tail holds.", lambda: len(pool))
        metrics.total("split_states_received", "Positions received.", lambda: contexts.received)
        metrics.total("split_states_duplicate", "Positions received again.", lambda: contexts.duplicates)
        metrics.total("split_dropped", "Sessions or their KV dropped.", lambda: contexts.dropped.total())
        metrics.total("split_tokens", "Tokens drawn.", lambda: pool.drawn)
        metrics.total("split_positions_computed", "Positions that the tail computed.", lambda: pool.computed)
        metrics.total("split_positions_cached", "Positions found in the tail's KV.", lambda: pool.cached)
        metrics.total("split_layer_tokens", "Layers times positions computed.", lambda: self._layers * pool.computed)
        metrics.total("split_seconds", "Seconds that tokens took, waiting for room included.", lambda: pool.seconds)
        metrics.total("split_engine_restarts", "Engines of the tail lost.", lambda: self.restarts)

    @property
    def _layers(self) -> int:
        return self.manifest.tail.last - self.manifest.tail.first + 1

    @contextmanager
    def _work(self, tokens: int) -> Iterator[None]:
        with self.keeper.using(), self._admit(tokens):
            yield

    def _on_loss(self) -> None:
        self.restarts += 1
        self.pool.lost()

    async def _run(self, app: web.Application) -> AsyncIterator[None]:
        keeping, sweeping = asyncio.create_task(self._keep(app)), asyncio.create_task(self._sweep())
        yield
        sweeping.cancel()
        await self.pool.close()
        keeping.cancel()
        await asyncio.wait([sweeping, keeping])

    async def _keep(self, app: web.Application) -> None:
        try:
            await self.keeper.run()
        except Exception as error:  # whatever it is, a server without a keeper is none
            app[FATAL].set_exception(error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 4)
            self.contexts.expire()


async def not_served(request: web.Request) -> web.StreamResponse:
    """GET /split of a cloud without a tail."""
    raise NotFoundError("this cloud has no tail of a split model: set cloud.split.manifest")
