"""Drafts on their way to requests that are running: a mailbox for each, and the socket that fills them. Knows no vLLM.

Lives in the engine process. A draft is a hint: losing one costs speed and nothing else, so nothing here ever waits.
"""

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import zmq
from msgspec import Struct

MAX_MAILBOXES = 4096
MAX_BYTES = 2**20
MAX_AGE_SECONDS = 10.0
MESSAGES_PER_STEP = 1024
REPORT_SECONDS = 1.0


class Address(NamedTuple):
    """Where a request's drafts arrive: the front end's socket, and the key that it made for this request alone."""

    socket: str
    key: bytes


class DraftMessage(Struct, array_like=True, forbid_unknown_fields=True):
    """Front end to engine: what may follow the first `position` tokens of a request."""

    key: bytes
    position: int
    token_ids: list[int]


class Opened(Struct, tag="opened", array_like=True):
    """Engine to front end: drafts for `key` are wanted here."""

    key: bytes


class Counters(Struct, tag="counters", array_like=True):
    """Engine to front end, so far: drafts of which something was verified (`taken`), and those dropped, by reason.

    `late`: the answer had passed or contradicted all of it. `foreign`: for no open mailbox. `full`: no room for it.
    `drafted`, `accepted`: draft tokens verified, and accepted.
    """

    taken: int = 0
    late: int = 0
    foreign: int = 0
    malformed: int = 0
    full: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Mail:
    """The newest draft of one mailbox; `used` once something of it was taken."""

    position: int
    token_ids: "array[int]"
    arrived: float
    used: bool = False

    @property
    def size(self) -> int:
        return len(self.token_ids) * self.token_ids.itemsize


class Mailboxes:
    """The newest draft of each open mailbox, bounded in number, bytes and age (seconds); the rest is counted.

    A draft stays until it is used up, contradicted, too old or replaced: one that is longer than a step can verify
    goes on in the next, and one that begins past what has been generated waits for its time.
    """

    def __init__(
        self,
        max_boxes: int = MAX_MAILBOXES,
        max_bytes: int = MAX_BYTES,
        max_age: float = MAX_AGE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self.bytes = 0
        self._limits = max_boxes, max_bytes, max_age
        self._clock = clock
        self._open: dict[bytes, int] = {}  # key -> drafts dropped
        self._mail: OrderedDict[bytes, Mail] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._open)

    def open(self, key: bytes) -> bool:
        """Whether there was room for one more."""
        if len(self._open) >= self._limits[0]:
            return False
        self._open[key] = 0
        return True

    def close(self, key: bytes) -> None:
        """Closes a mailbox; a draft that is still unused in it came too late."""
        if key in self._mail:
            self._drop(key)
        self._open.pop(key, None)

    def put(self, key: bytes, position: int, token_ids: Sequence[int]) -> None:
        """Replaces the draft that was there. One for no mailbox of ours is foreign."""
        _, max_bytes, max_age = self._limits
        now = self._clock()
        while self._mail and now - next(iter(self._mail.values())).arrived > max_age:
            self._drop(next(iter(self._mail)))
        if key not in self._open:
            self.counters.foreign += 1
            return
        mail = Mail(position, array("i", token_ids), now)
        self._discard(key)
        if self.bytes + mail.size > max_bytes:
            self.counters.full += 1
            return
        self._mail[key] = mail
        self.bytes += mail.size

    def take(self, key: bytes, token_ids: Sequence[int]) -> list[int]:
        """What the draft says about the tokens after `token_ids`; nothing if it contradicts them."""
        mail = self._mail.get(key)
        if mail is None or mail.position > len(token_ids):
            return []
        known = len(token_ids) - mail.position
        expired = self._clock() - mail.arrived > self._limits[2]
        if expired or known >= len(mail.token_ids) or not self.agrees(mail, token_ids):
            self._drop(key)
            return []
        if not mail.used:
            mail.used = True
            self.counters.taken += 1
        return mail.token_ids[known:].tolist()

    def dropped(self, key: bytes) -> int:
        """How many drafts of this mailbox were dropped without use."""
        return self._open.get(key, 0)

    @staticmethod
    def agrees(mail: Mail, token_ids: Sequence[int]) -> bool:
        """Whether the draft foretold all that was generated since; what it says next is worth verifying only then."""
        known = len(token_ids) - mail.position
        return mail.token_ids[:known].tolist() == list(token_ids[mail.position :])

    def _drop(self, key: bytes) -> None:
        """Discards a draft that the answer has outlived; one that was never used came too late."""
        if not self._mail[key].used:
            self.counters.late += 1
            self._open[key] += 1
        self._discard(key)

    def _discard(self, key: bytes) -> None:
        if mail := self._mail.pop(key, None):
            self.bytes -= mail.size


class Inbox:
    """The engine's end of one front end's socket, and the mailboxes that it fills. Every call returns at once.

    Owned by the scheduler; `close` when done. Positions are below `max_position`, token ids below `vocab_size`.
    """

    def __init__(self, socket: str, max_position: int, vocab_size: int, mailboxes: Mailboxes | None = None) -> None:
        self.mailboxes = mailboxes or Mailboxes()
        self._bounds = max_position, vocab_size
        self._reported = Counters()
        self._next_report = 0.0
        self._decoder = msgspec.msgpack.Decoder(DraftMessage)
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 2**16)
        self._socket.connect(socket)

    def open(self, key: bytes) -> None:
        """Opens a mailbox, if there is room, and asks the front end for drafts."""
        if self.mailboxes.open(key):
            self._send(Opened(key))

    def receive(self, report: bool = False) -> None:
        """Reads what has arrived, a bounded number of messages at a time; sends the counters now and then, or now."""
        for message in self._arrived():
            self._put(message)
        now = time.monotonic()
        if (report or now >= self._next_report) and self.mailboxes.counters != self._reported:
            self._reported = msgspec.structs.replace(self.mailboxes.counters)
            self._next_report = now + REPORT_SECONDS
            self._send(self._reported)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _arrived(self) -> Iterable[bytes]:
        for _ in range(MESSAGES_PER_STEP):
            try:
                yield self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _put(self, message: bytes) -> None:
        max_position, vocab_size = self._bounds
        try:
            draft = self._decoder.decode(message)
        except (msgspec.DecodeError, RecursionError):
            self.mailboxes.counters.malformed += 1
            return
        ids = draft.token_ids
        if ids and 0 <= draft.position < max_position and min(ids) >= 0 and max(ids) < vocab_size:
            self.mailboxes.put(draft.key, draft.position, ids)
        else:
            self.mailboxes.counters.malformed += 1

    def _send(self, message: Opened | Counters) -> None:
        try:
            self._socket.send(msgspec.msgpack.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            self._next_report = 0.0  # counters are absolute: the next report says it all
