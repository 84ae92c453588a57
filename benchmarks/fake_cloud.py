"""A cloud server without a real model: the cloud's HTTP routes, answered by the toy model.

It keeps sessions and replays rounds as the real server does. Its attributes make it fail on purpose.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from aiohttp import WSMsgType, web

from benchmarks.toy_model import CONTEXT, END, answer_of, cloud_model, verify
from common.errors import EngineError, OverloadedError, PrefixUnknown
from common.http.client import HTTPClient
from common.http.messages import read, reply, websocket
from common.http_server import HTTPServer, make_app
from common.protocol import codec
from common.protocol.content.tokenizer_json import pieces_of
from common.protocol.prefix_hash import prefix_hash
from common.protocol.stream_frames import ClientFrame, DraftFrame, EndFrame, StartFrame, TokensFrame
from common.protocol.vocabulary import VocabularyInfo, fingerprint
from common.types import FinishReason, VerifyRequest, VerifyResponse

TOKENIZER = Path(__file__).parents[1] / "models" / "demo-cloud" / "tokenizer.json"


class FakeCloud:
    """Answers greedily; waits `pause` seconds before each token of a stream and before each round's answer."""

    def __init__(self) -> None:
        self.url = ""
        self.ready = True
        self.full = False
        self.protocol = codec.PROTOCOL
        self.pause = 0.0
        self.context = CONTEXT
        """Tokens of its context; an answer that fills it ends with `length`."""
        self.break_after_round: int | None = None
        """After the work of this round, counted from 1, it breaks the connection instead of answering."""
        self.break_before_end = False
        """It closes a stream's connection instead of sending its last frame."""
        self.probes = 0
        self.asked: list[VerifyRequest] = []
        """The rounds that it computed; a replayed round is not in it again."""
        self.tells = asyncio.Event()
        """Cleared: a request for its vocabulary waits."""
        self.tells.set()
        self.vocabulary: VocabularyInfo | None = None
        """None: the demo model's."""
        self.starts: list[StartFrame] = []
        self._sessions: dict[str, list[int]] = {}
        self._answers: dict[tuple[str, str], VerifyResponse] = {}

    def app(self) -> web.Application:
        app = make_app()
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/tokenizer", self._tokenizer)
        app.router.add_post("/verify", self._verify)
        app.router.add_get("/stream", self._stream)
        app.on_response_prepare.append(self._add_protocol)
        return app

    async def _add_protocol(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers[codec.PROTOCOL_HEADER] = self.protocol

    async def _ready(self, request: web.Request) -> web.Response:
        self.probes += 1
        self._refuse()
        return reply(request, {"status": "ready"})

    async def _tokenizer(self, request: web.Request) -> web.Response:
        self._refuse()
        await self.tells.wait()
        if self.vocabulary is None:
            pieces = pieces_of(TOKENIZER.read_text())
            self.vocabulary = VocabularyInfo(fingerprint(pieces), len(pieces), context_length=self.context)
        return reply(request, self.vocabulary)

    async def share_vocabulary(self, edge: HTTPClient) -> None:
        """Takes the vocabulary of `edge`, so that its token ids are valid here."""
        self.vocabulary = await edge.get("/tokenizer", VocabularyInfo)

    def _refuse(self) -> None:
        if not self.ready:
            raise EngineError("the engine is starting")
        if self.full:
            raise OverloadedError("no room")

    async def _verify(self, request: web.Request) -> web.Response:
        body = await read(request, VerifyRequest)
        self._refuse()
        key = body.session, body.idempotency_key
        if body.idempotency_key and key in self._answers:
            return reply(request, self._answers[key])
        held = self._sessions.get(body.session, [])[: body.prefix_length]
        if len(held) < body.prefix_length or prefix_hash(held) != body.prefix_hash:
            raise PrefixUnknown("prefix unknown")
        await asyncio.sleep(self.pause)
        committed = held + body.new_token_ids
        verdict = verify(committed, body.draft_token_ids, body.max_tokens, self.context)
        self._sessions[body.session] = committed + verdict.token_ids
        answer = VerifyResponse(
            token_ids=verdict.token_ids,
            accepted=verdict.accepted,
            drafted=len(body.draft_token_ids),
            finish_reason=verdict.finish_reason,
        )
        self._answers[key] = answer
        self.asked.append(body)
        if len(self.asked) == self.break_after_round:
            assert request.transport is not None
            request.transport.abort()
        return reply(request, answer)

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        """Streams token by token and ignores drafts; a connection with `keep` serves one answer after another."""
        socket = await websocket(request)
        start: StartFrame | None = codec.decode((await socket.receive()).data, cast(Any, ClientFrame), codec.MSGPACK)
        while start is not None:
            start = await self._answer(socket, start)
        await socket.close()
        return socket

    async def _answer(self, socket: web.WebSocketResponse, start: StartFrame) -> StartFrame | None:
        """Streams one answer; returns the next start frame of a kept connection."""
        self.starts.append(start)
        position = len(start.token_ids)
        generating = answer_of(cloud_model, start.token_ids, min(start.max_tokens, self.context - position))
        reading = asyncio.create_task(self._read(socket))
        reason = FinishReason.STOP if generating[-1] == END else FinishReason.LENGTH
        for number, token in enumerate(generating, 1):
            await asyncio.sleep(self.pause)
            frame = TokensFrame(position=position, token_ids=[token])
            frame.finish_reason = reason if number == len(generating) else None
            await socket.send_bytes(codec.encode(frame, codec.MSGPACK))
            position += 1
        if self.break_before_end:
            await socket.close()
            return None
        await socket.send_bytes(codec.encode(EndFrame(finish_reason=reason, steps=len(generating)), codec.MSGPACK))
        if start.keep:
            return await reading
        reading.cancel()
        return None

    async def _read(self, socket: web.WebSocketResponse) -> StartFrame | None:
        """The next start frame; None once the client has closed the connection."""
        while (message := await socket.receive()).type is WSMsgType.BINARY:
            frame = codec.decode(message.data, cast(Any, ClientFrame), codec.MSGPACK)
            if isinstance(frame, StartFrame):
                return frame
            assert isinstance(frame, DraftFrame)
        return None


@asynccontextmanager
async def serving(port: int = 0) -> AsyncIterator[FakeCloud]:
    """A fake cloud on this port; 0: any free one."""
    cloud = FakeCloud()
    server = HTTPServer(cloud.app(), "127.0.0.1", port, drain_seconds=0)
    await server.start()
    cloud.url = f"http://127.0.0.1:{server.port}"
    try:
        yield cloud
    finally:
        await server.stop()
