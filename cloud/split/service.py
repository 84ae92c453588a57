"""The cloud's half of the layer split: puts together its engine, sessions, route and metrics."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from cloud.engine.supervisor import EngineSupervisor, SupervisorTiming
from cloud.metrics import CloudMetrics
from cloud.split.connection import SplitBackend
from cloud.split.context_manager import CloudContextManager, Limits
from cloud.split.engine import TailEngine
from cloud.split.pool import TailPool
from cloud.split.route import SplitRoute
from common.config_cloud import CloudSplitConfig
from common.errors import NotFoundError
from common.http_server import FATAL
from common.protocol.split_manifest import read_manifest


class SplitService:
    """Owns the tail's engine, which runs beside the whole model's, and all sessions, for as long as its app runs.

    `admit` is entered around each token request with the length of its sequence.
    """

    def __init__(
        self, config: CloudSplitConfig, timing: SupervisorTiming, admit: Callable[[int], AbstractContextManager[object]]
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
        self.supervisor = EngineSupervisor(self.engine, timing, self._on_loss)
        self._admit = admit
        self._session_seconds = config.session_seconds
        self._ready_once = False

    def add_to(self, app: web.Application) -> None:
        """Adds the route, and the tasks behind it."""
        app.cleanup_ctx.append(self._run)
        backend = SplitBackend(self.manifest, self.contexts, self.pool, self._work)
        app.router.add_get("/split", SplitRoute(backend).handle)

    def check_started(self) -> None:
        """Raises EngineError until the engine has been up once; a later loss is reported to the token requests."""
        if not self._ready_once:
            self.supervisor.check()
            self._ready_once = True

    def stats(self) -> dict[str, Any]:
        """The figures for GET /stats."""
        contexts, pool = self.contexts, self.pool
        return {
            "ready": self.supervisor.ready,
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

    def register_metrics(self, metrics: CloudMetrics) -> None:
        """Registers the metrics, which are read at each scrape."""
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
        with self.supervisor.using(), self._admit(tokens):
            yield

    def _on_loss(self) -> None:
        self.restarts += 1
        self.pool.drop_all()

    async def _run(self, app: web.Application) -> AsyncIterator[None]:
        supervising, sweeping = asyncio.create_task(self._supervise(app)), asyncio.create_task(self._sweep())
        yield
        sweeping.cancel()
        await self.pool.close()
        supervising.cancel()
        await asyncio.wait([sweeping, supervising])

    async def _supervise(self, app: web.Application) -> None:
        try:
            await self.supervisor.run()
        except Exception as error:  # of any kind: without a supervisor the server cannot go on
            app[FATAL].set_exception(error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._session_seconds / 4)
            self.contexts.expire()


async def not_served(request: web.Request) -> web.StreamResponse:
    """Handles GET /split of a cloud without a tail: raises NotFoundError."""
    raise NotFoundError("this cloud has no tail of a split model: set cloud.split.manifest")
