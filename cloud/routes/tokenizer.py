"""GET /tokenizer and /tokenizer/file: the cloud's tokenizer, for edges whose own may differ."""

import asyncio
from contextlib import suppress

from aiohttp import web
from jinja2 import TemplateError

from cloud.engine.engine import CloudEngine
from common.errors import VocabularyError
from common.http.messages import reply
from common.protocol import vocabulary
from common.protocol.content import tokenizer_json
from common.protocol.vocabulary import GREETING, TokenizerFile, VocabularyInfo


class TokenizerRoute:
    """The vocabulary of one engine, read at the first request; it is the same after a restart."""

    def __init__(self, engine: CloudEngine) -> None:
        self._engine = engine
        self._file: TokenizerFile | None = None
        self._greeting: list[int] | None = None
        self._probes = ""
        self._reading = asyncio.Lock()

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/tokenizer", self.info)
        app.router.add_get("/tokenizer/file", self.file)

    async def info(self, request: web.Request) -> web.Response:
        file = await self._read_once()
        engine = self._engine
        info = VocabularyInfo(
            file.fingerprint,
            engine.vocab_size,
            self._greeting,
            engine.max_model_len,
            engine.model_name,
            self._probes,
            tokenizer_json.normalizer_of(file.tokenizer),
        )
        return reply(request, info)

    async def file(self, request: web.Request) -> web.Response:
        return reply(request, await self._read_once())

    async def check(self, fingerprint: str) -> None:
        """Raises VocabularyError for the fingerprint of another vocabulary; an empty one is not checked."""
        if fingerprint and fingerprint != (await self._read_once()).fingerprint:
            raise VocabularyError("these token ids are of another vocabulary than this cloud's", param="vocabulary")

    async def prepare(self) -> None:
        """Reads the tokenizer, which takes seconds for a large vocabulary, before an edge waits for it."""
        with suppress(VocabularyError):
            await self._read_once()

    async def _read_once(self) -> TokenizerFile:
        async with self._reading:
            if self._file is None:
                self._greeting = await asyncio.to_thread(greeting, self._engine)
                file = await asyncio.to_thread(_read, self._engine)
                self._probes = await asyncio.to_thread(_reading, file)
                self._file = file
        return self._file


def greeting(engine: CloudEngine) -> list[int] | None:
    """The prompt for GREETING by the model's chat template; empty without one, None if it refuses the message."""
    if not engine.chat_template:
        return []
    tokenizer, turn = engine.tokenizer, {"role": "user", "content": GREETING}
    options = {"chat_template": engine.chat_template, "tokenize": False, "add_generation_prompt": True}
    try:
        text = tokenizer.apply_chat_template([turn], **options)
    except TemplateError:
        return None
    return list(tokenizer.encode(text, add_special_tokens=False))


def _read(engine: CloudEngine) -> TokenizerFile:
    """Raises VocabularyError for a tokenizer that has no tokenizer.json."""
    tokenizer = engine.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise VocabularyError("this model's tokenizer has no form that an edge can read (tokenizer.json)")
    text = backend.to_str()
    return TokenizerFile(
        fingerprint=vocabulary.fingerprint(tokenizer_json.pieces_of(text)),
        tokenizer=text,
        end_tokens=engine.end_tokens,
        chat_template=engine.chat_template,
        bos=getattr(tokenizer, "bos_token", None) or "",
        eos=getattr(tokenizer, "eos_token", None) or "",
    )


def _reading(file: TokenizerFile) -> str:
    tokenizer = tokenizer_json.load(file.tokenizer)
    return vocabulary.reading_of(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
