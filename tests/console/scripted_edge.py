"""An edge whose answers a test writes: the real console and HTTP server, with scripted routes behind them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from common.config_schema import PricesConfig
from common.config_values import Secret, ServerConfig
from common.decoding.estimates import Estimates
from common.decoding.explanation import policy_view
from common.decoding.policy import Plan
from common.errors import EngineError
from common.http.messages import read, reply, stream
from common.http_server import HTTPServer, make_app
from common.protocol import codec
from common.protocol.openai_responses import dump
from common.types import Collaboration, Provenance
from edge.console import pages
from edge.metrics import AnswerMetrics
from edge.savings import Savings

KEY = "let-me-in"


class ScriptedPiece(NamedTuple):
    """Text of one event, and the tokens that come with it; without `tokens` the text is one token."""

    text: str
    source: Provenance = Provenance.EDGE
    confidence: float | None = 0.9
    tokens: Sequence[str] | None = None


ANSWER = [
    ScriptedPiece("Edge and"),
    ScriptedPiece(" cloud", Provenance.ACCEPTED, 0.7),
    ScriptedPiece(" answer", Provenance.RECOVERED, None),
    ScriptedPiece(" together", Provenance.BONUS, None),
    ScriptedPiece(".", Provenance.CLOUD, None),
]


@dataclass
class ScriptedEdge:
    """Answers each question with `pieces`, or those of its mode in `by_mode`."""

    url: str = ""
    pieces: Sequence[ScriptedPiece] = field(default_factory=lambda: list(ANSWER))
    by_mode: dict[str, Sequence[ScriptedPiece]] = field(default_factory=dict)
    deltas: Sequence[dict[str, Any]] = ()
    """Sent before the pieces, as they are."""
    pause: float = 0.0
    """Seconds before each piece."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    """Pieces wait for it where `holds` is set."""
    holds: bool = False
    breaks_after: int | None = None
    """Pieces after which the connection breaks."""
    fails_after: int | None = None
    """Pieces after which the stream ends with an error event."""
    degraded: str | None = None
    model: str = "scripted"
    breaker: str = "closed"
    last_error: str = ""
    savings: Savings = field(default_factory=lambda: Savings(PricesConfig()))
    estimates: Estimates = field(default_factory=Estimates)
    asked: list[dict[str, Any]] = field(default_factory=list)
    polled: int = 0
    left: int = 0
    """Answers whose client left before the end."""
    metrics: AnswerMetrics | None = None

    def app(self, keys: Sequence[str]) -> web.Application:
        registry = CollectorRegistry()
        self.metrics = AnswerMetrics(registry)
        config = ServerConfig(host="127.0.0.1", api_keys=[Secret(key) for key in keys])
        app = make_app(config, registry, public=pages.ROUTES)
        pages.add_console(app)
        app.router.add_get("/stats", self._stats)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return reply(request, {"object": "list", "data": [{"id": self.model}]})

    async def _stats(self, request: web.Request) -> web.Response:
        self.polled += 1
        calls = {"ok": 7, "refused": 0, "busy": 0, "failed": 0, "cancelled": 0}
        breaker = {"state": self.breaker, "openings": 2}
        cloud = {"breaker": breaker, "last_error": self.last_error, "in_flight": 1, "calls": calls}
        traffic = {"avg_latency_ms": 41.5, "bytes_up": 1500, "bytes_down": 2_500_000}
        engine = {"sequences": 4, "sequences_lent": 1, "waiting": 2, "kv_hits": 3, "kv_misses": 1}
        clouds = {"endpoints": {"http://cloud.example:8081": cloud | traffic}, "failovers": 0, "degraded_answers": 0}
        confidence = {"threshold": 0.8, "product_threshold": 0.3}
        figures = {"engine": engine, "clouds": clouds, "confidence": confidence}
        policy = msgspec.to_builtins(policy_view(Plan(), self.estimates))
        return reply(
            request, figures | {"policy": policy, "savings": self.savings.stats(), "router": {"threshold": 0.4}}
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await read(request, dict[str, Any])
        self.asked.append(body)
        return await stream(request, self._events(request, body))

    async def _events(self, request: web.Request, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        report = Collaboration(mode=body["mode"], degraded=self.degraded, bytes_up=1234, bytes_down=99)
        try:
            for delta in self.deltas:
                yield _event({"choices": [{"delta": delta}]})
            for number, piece in enumerate(self.by_mode.get(mode_of(body), self.pieces)):
                await asyncio.sleep(self.pause)
                if self.holds:
                    await self.go_on.wait()
                if number == self.fails_after:
                    raise EngineError("the engine has stopped")
                if number == self.breaks_after:
                    assert request.transport is not None
                    request.transport.abort()
                yield _event({"choices": [_choice(piece)]})
                report.tokens[piece.source] += 1 if piece.tokens is None else len(piece.tokens)
        except (GeneratorExit, asyncio.CancelledError):
            self.left += 1
            raise
        assert self.metrics is not None
        self.metrics.record_answer(report)
        yield _event({"choices": [{"delta": {}, "finish_reason": "stop"}], "collaboration": dump(report)})
        yield b"data: [DONE]\n\n"


def mode_of(body: dict[str, Any]) -> str:
    """As the page names it: both collaborative modes are one on the wire."""
    return {True: "gated", False: "lossless"}.get(body.get("use_confidence_check", ""), body["mode"])


def _choice(piece: ScriptedPiece) -> dict[str, Any]:
    texts = [piece.text] if piece.tokens is None else piece.tokens
    tokens = [{"text": text, "source": piece.source, "confidence": piece.confidence} for text in texts]
    score = {"top_logprobs": [{"token": piece.text, "logprob": -0.1}, {"token": "other", "logprob": -2.5}]}
    scores = {"content": [score] * len(texts)}
    return {"delta": {"content": piece.text}, "collaboration": {"tokens": tokens}, "logprobs": scores}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + codec.encode(chunk) + b"\n\n"


@asynccontextmanager
async def scripted_edge(*keys: str) -> AsyncIterator[ScriptedEdge]:
    edge = ScriptedEdge()
    server = HTTPServer(edge.app(keys), "127.0.0.1", 0, drain_seconds=0)
    await server.start()
    edge.url = f"http://127.0.0.1:{server.port}/"
    try:
        yield edge
    finally:
        await server.stop()
