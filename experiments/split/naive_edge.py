"""Serves the edge of a naively split model, for comparison with the layer split.

python -m experiments.split.naive_edge [--host HOST] [--port PORT] [--config FILE] [--set KEY=VALUE]

It uses the layer split's first segment, connection and cloud, but no exits, no overlap and no state in the cloud: for
each token, the hidden states of the whole context go up in fp32 in a session of their own. It streams greedy answers to
`/v1/chat/completions` and has only the routes that experiments need.
"""

import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from aiohttp import web
from msgspec.structs import asdict
from prometheus_client import CollectorRegistry

from cli.args import config_parser, load_config, run_program, set_up_logging
from common.cloud_client.split_session import SplitCloud
from common.config_edge import EdgeModelConfig
from common.config_schema import Config
from common.errors import EngineError
from common.http.client import HTTPClient
from common.http.messages import read, reply, stream
from common.http_server import make_app, serve
from common.protocol import codec
from common.protocol.openai import ChatRequest
from common.protocol.openai_responses import Usage
from common.protocol.split_manifest import DEMO, read_manifest
from common.types import GREEDY, Collaboration, Provenance, StateEncoding
from edge.metrics import AnswerMetrics
from edge.split.segments import Segments, SegmentSequence
from edge.text.chat_template import ChatTemplate
from edge.text.detokenizer import TextStream


class NaiveEdge:
    """Answers concurrent requests over one connection to the cloud; `deadline` in seconds for each token."""

    def __init__(
        self, segments: Segments, cloud: SplitCloud, template: ChatTemplate, metrics: AnswerMetrics, deadline: float
    ) -> None:
        self.segments = segments
        self._cloud = cloud
        self._template = template
        self._metrics = metrics
        self._deadline = deadline

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Streams the answer to a chat request."""
        body = await read(request, ChatRequest)
        text = await self._template.render(body.messages)
        ids = self.segments.tokenize(text, add_special=False, parse_special=True)
        limit = body.max_completion_tokens or body.max_tokens or self.segments.context_length
        return await stream(request, self._events(ids, min(limit, self.segments.context_length - len(ids))))

    async def _events(self, ids: list[int], limit: int) -> AsyncGenerator[bytes, None]:
        report = Collaboration(mode="naive_split", lossless=True)
        text = TextStream(self.segments.piece)
        reason = "length"
        async with aclosing(self._tokens(ids, limit, report)) as tokens:
            async for token in tokens:
                if token in self.segments.end_tokens:
                    reason = "stop"
                yield event({"index": 0, "delta": {"content": text.push([token])}, "finish_reason": None})
        yield event({"index": 0, "delta": {"content": text.flush()}, "finish_reason": reason})
        self._metrics.record_answer(report)
        count = report.tokens[Provenance.CLOUD]
        usage = asdict(Usage(len(ids), count, len(ids) + count))
        yield b"data: " + codec.encode({"choices": [], "usage": usage, "collaboration": report}) + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def _tokens(self, ids: list[int], limit: int, report: Collaboration) -> AsyncGenerator[int, None]:
        new = ids
        async with self.segments.sequence(len(ids) + limit) as sequence:
            for _ in range(limit):
                async for _ in sequence.draw(new, 0, lambda confidence: False):
                    pass
                token = await self._cloud_token(sequence, report)
                yield token
                if token in self.segments.end_tokens:
                    return
                new = [token]

    async def _cloud_token(self, sequence: SegmentSequence, report: Collaboration) -> int:
        """The cloud's next token after all positions, in a new session that carries their hidden states."""
        began = time.perf_counter()
        async with self._cloud.session(self.segments.manifest.fingerprint, StateEncoding.FP32) as session:
            session.send(sequence.states)
            await session.flush()
            token = await session.token(GREEDY, self._deadline)
        report.cloud_latency_ms += (time.perf_counter() - began) * 1000
        report.cloud_calls += 1
        report.cloud_steps += 1
        report.rounds += 1
        report.bytes_up += session.bytes_up
        report.bytes_down += session.bytes_down
        report.tokens[Provenance.CLOUD] += 1
        return token.token_id


EDGE = web.AppKey("EDGE", NaiveEdge)


def event(choice: dict[str, Any]) -> bytes:
    """A server-sent event with one choice."""
    return b"data: " + codec.encode({"choices": [choice]}) + b"\n\n"


def build_app(config: Config) -> web.Application:
    """The edge's web application; its segments start with it."""
    registry = CollectorRegistry()
    app, metrics = make_app(config.edge.server, registry), AnswerMetrics(registry)
    app.cleanup_ctx.append(lambda app: _running(app, config, metrics))
    app.router.add_get("/ready", _ready)
    app.router.add_get("/stats", _stats)
    app.router.add_post("/v1/chat/completions", _chat)
    return app


def _segments(config: Config) -> Segments:
    path, model = Path(config.edge.split.manifest or DEMO), config.edge.model
    return Segments(
        read_manifest(path),
        path if path.is_dir() else path.parent,
        EdgeModelConfig(
            context_length=model.context_length,
            threads=model.threads,
            threads_batch=model.threads_batch,
            sequences=model.sequences,
        ),
    )


async def _running(app: web.Application, config: Config, metrics: AnswerMetrics) -> AsyncIterator[None]:
    communication, segments = config.communication, _segments(config)
    async with (
        segments,
        HTTPClient(communication.cloud_endpoint, communication.http_client, communication.cloud_api_key) as http,
        SplitCloud(http) as cloud,
        ChatTemplate(segments.chat_template or "", bos=segments.bos, eos=segments.eos) as template,
    ):
        app[EDGE] = NaiveEdge(segments, cloud, template, metrics, config.edge.split.deadline_ms / 1000)
        yield


async def _ready(request: web.Request) -> web.Response:
    if not request.app[EDGE].segments.alive:
        raise EngineError("the edge's segments have stopped")
    return reply(request, {"status": "ready"})


async def _stats(request: web.Request) -> web.Response:
    return reply(request, {"engine": request.app[EDGE].segments.stats()})


async def _chat(request: web.Request) -> web.StreamResponse:
    return await request.app[EDGE].chat(request)


async def main() -> None:
    parser = config_parser("Start the edge of a naively split model, for comparison.")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="TCP port; 0: any free one")
    args = parser.parse_args()
    config = load_config(args, edge__server__host=args.host, edge__server__port=args.port)
    set_up_logging(config.logging.level)
    await serve(build_app(config), config.edge.server, "naive edge")


if __name__ == "__main__":
    sys.exit(run_program(main()))
