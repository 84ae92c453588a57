"""The web server's socket through which drafts reach the engine processes.

It is a ROUTER, because each engine process (one for each data-parallel rank) connects for its own requests, and a draft
is sent only to the process that runs its request. It is in a directory that only this user can enter.
"""

import asyncio
import logging
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import zmq
import zmq.asyncio
from msgspec import msgpack

from cloud.vllm_plugin.draft_messages import MAX_MAILBOXES, Address, Counters, DraftMessage, Opened

log = logging.getLogger(__name__)


class Sender:
    """Sends the drafts of one answer; `DraftChannel.sender` makes it. No call waits."""

    def __init__(self, channel: "DraftChannel", address: Address) -> None:
        self.address = address
        self.engine: bytes | None = None
        """The engine process that has the mailbox, once it has reported so."""
        self.held: bytes | None = None
        """The newest draft until then."""
        self._channel = channel

    def send(self, position: int, token_ids: list[int]) -> None:
        """Sends a draft, which replaces any earlier one; it may be dropped on the way, and is then counted."""
        message = msgpack.encode(DraftMessage(self.address.key, position, token_ids))
        if self.engine is None:
            self.held = message
        else:
            self._channel.forward(self.engine, message)


class DraftChannel:
    """Works from `start` to `close`, on one event loop; engine processes may connect and leave meanwhile."""

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._senders: dict[bytes, Sender] = {}
        self._reports: dict[bytes, Counters] = {}
        self._own = Counters()

    async def start(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="drafts-")  # mode 0700
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a full or lost engine is an error to count, not silence
        self._socket.setsockopt(zmq.SNDHWM, 2 * MAX_MAILBOXES)
        self._socket.bind(self.address)
        self._task = asyncio.create_task(self._read(self._socket), name="draft-channel")

    async def close(self) -> None:
        if self._task is not None and self._context is not None and self._directory is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._context.destroy(linger=0)
            self._directory.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def address(self) -> str:
        """The socket's address for engine processes on this machine."""
        assert self._directory is not None
        return f"ipc://{Path(self._directory.name) / 'drafts'}"

    @property
    def counters(self) -> Counters:
        """The counts of all drafts so far, summed over all engine processes, as of their last reports."""
        parts = [self._own, *self._reports.values()]
        return Counters(*(sum(getattr(part, name) for part in parts) for name in Counters.__struct_fields__))

    @contextmanager
    def sender(self) -> Iterator[Sender]:
        """A sender for one answer; its key is secret, and only the engine process gets it."""
        key = secrets.token_bytes(16)
        sender = self._senders[key] = Sender(self, Address(self.address, key))
        try:
            yield sender
        finally:
            del self._senders[key]

    def forward(self, engine: bytes, message: bytes) -> None:
        assert self._socket is not None
        sending: Any = self._socket.send_multipart([engine, message], flags=zmq.NOBLOCK)  # complete when it returns
        match sending.exception():
            case None:
                pass
            case zmq.Again():
                self._own.full += 1
            case zmq.ZMQError():
                self._own.foreign += 1  # the engine process that had the mailbox has ended

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        decoder: msgpack.Decoder[Opened | Counters] = msgpack.Decoder(Opened | Counters)
        while True:
            engine, message = await socket.recv_multipart()
            try:
                self._take(engine, decoder.decode(message))
            except msgspec.DecodeError:
                log.warning("an engine process sent a report that cannot be read")

    def _take(self, engine: bytes, message: Opened | Counters) -> None:
        if isinstance(message, Counters):
            self._reports[engine] = message
        elif sender := self._senders.get(message.key):
            sender.engine = engine
            if sender.held is not None:
                self.forward(engine, sender.held)
                sender.held = None
