"""A server with OpenAI's API and no model: it streams the same words whatever it is asked, and fails on purpose."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from common.http_server import HTTPServer, make_app

WORDS = ("Clouds", " are", " made", " of", " water", ".")
KEY = "sk-of-the-cloud"


class FakeOpenAI:
    """Waits `pause` seconds before each word. `asked`: the paths and bodies of its calls that generate."""

    def __init__(self, owner: str = "vllm") -> None:
        self.owner = owner
        self.url = ""
        self.words = WORDS
        self.pause = 0.0
        self.reading: float | None = None
        """Seconds that it reads texts to embed or to rank; None: it has no such routes."""
        self.usage: Any = {
            "prompt_tokens": 11,
            "completion_tokens": len(WORDS),
            "prompt_tokens_details": {"cached_tokens": 5},
        }
        self.context: int | None = 4096
        self.template = "<|user|>{content}<|assistant|>"
        """How it writes a user's message."""
        self.status = 200
        self.error: object = {"error": {"message": "out of order", "type": "server_error", "code": None}}
        self.break_after: int | None = None
        """Words after which it breaks the connection."""
        self.ends = True
        """Whether its streams say why they end."""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str] = []
        self.left = asyncio.Event()
        """Set when a client has left before the end."""

    def app(self) -> web.Application:
        app = make_app()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/props", self._props)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_post("/apply-template", self._detokenize)
        for path in ("/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, self._generate)
        for path in ("/v1/embeddings", "/v1/rerank"):
            app.router.add_post(path, self._read)
        return app

    async def _read(self, request: web.Request) -> web.Response:
        if self.reading is None:
            raise web.HTTPNotFound
        self.asked.append((request.path.removeprefix("/v1"), await request.json()))
        await asyncio.sleep(self.reading)
        return web.json_response({"data": [], "usage": self.usage})

    async def _models(self, request: web.Request) -> web.Response:
        if self.status != 200:
            return self._failure()
        card = {"id": "words", "object": "model", "owned_by": self.owner}
        return web.json_response({"data": [card | ({"max_model_len": self.context} if self.context else {})]})

    async def _props(self, request: web.Request) -> web.Response:
        return web.json_response({"default_generation_settings": {"n_ctx": 2048}})

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"tokens": [1, 2, 3]})

    async def _detokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": self.template.format(content="Hello")})

    def _failure(self) -> web.Response:
        return web.Response(text=json.dumps(self.error), status=self.status, content_type="application/json")

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append((request.path.removeprefix("/v1"), body))
        self.keys.append(request.headers.get("Authorization", ""))
        if self.status != 200:
            return self._failure()
        if not body.get("stream"):
            await asyncio.sleep(self.pause)
            said = "".join(self.words)
            part = {"message": {"role": "assistant", "content": said}} if "chat" in request.path else {"text": said}
            choice = {"index": 0, "finish_reason": "stop"} | part
            return web.json_response({"id": "1", "model": body["model"], "choices": [choice], "usage": self.usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await self._stream(request, response, "chat" in request.path, body.get("max_tokens", 100))
        except (ConnectionError, asyncio.CancelledError):
            self.left.set()
            raise
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse, chat: bool, limit: int) -> None:
        for number, word in enumerate(self.words[:limit]):
            if number == self.break_after:
                await asyncio.sleep(0.05)  # what was written is on its way
                assert request.transport is not None
                request.transport.abort()
                return
            await asyncio.sleep(self.pause)
            await self._send(response, {"choices": [_choice(chat, word, None)]})
        if not self.ends:
            return
        reason = "stop" if limit >= len(self.words) else "length"
        await self._send(response, {"choices": [_choice(chat, "", reason)]})
        await self._send(response, {"choices": [], "usage": self.usage})
        await response.write(b"data: [DONE]\n\n")

    async def _send(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def _choice(chat: bool, word: str, reason: str | None) -> dict[str, Any]:
    said = {"delta": {"content": word}} if chat else {"text": word}
    return {"index": 0, "finish_reason": reason} | said


@asynccontextmanager
async def serving(owner: str = "vllm") -> AsyncIterator[FakeOpenAI]:
    fake = FakeOpenAI(owner)
    server = HTTPServer(fake.app(), "127.0.0.1", 0, drain_seconds=0)
    await server.start()
    fake.url = f"http://127.0.0.1:{server.port}/v1"
    try:
        yield fake
    finally:
        await server.stop()
