"""The engine process's mailboxes: the newest draft for each running request, and the socket that fills them.

A draft is a hint: losing one costs speed and nothing else, so nothing here ever waits.
"""

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from cloud.vllm_plugin.draft_messages import MAX_MAILBOXES, Counters, DraftMessage, Opened

MAX_BYTES = 2**20
MAX_AGE_SECONDS = 10.0
MESSAGES_PER_STEP = 1024
REPORT_SECONDS = 1.0


@dataclass(slots=True)
class Mail:
    """The newest draft of one mailbox; `used` once some token of it was taken."""

    position: int
    token_ids: "array[int]"
    arrived: float
    used: bool = False

    @property
    def size(self) -> int:
        return len(self.token_ids) * self.token_ids.itemsize


class Mailboxes:
    """The newest draft of each open mailbox, bounded in number, bytes of token ids, and age in seconds.

    A draft stays until it is used up, contradicted, too old or replaced: the rest of one that is longer than a step
    can verify is offered in the next step, and one that begins past the tokens generated so far waits for them. Drafts
    that are dropped are counted by reason.
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
        """Opens a mailbox; returns False if there are too many."""
        if len(self._open) >= self._limits[0]:
            return False
        self._open[key] = 0
        return True

    def close(self, key: bytes) -> None:
        """Closes a mailbox; a draft in it that was never used counts as late."""
        if key in self._mail:
            self._drop(key)
        self._open.pop(key, None)

    def put(self, key: bytes, position: int, token_ids: Sequence[int]) -> None:
        """Replaces the draft in a mailbox; one whose mailbox is not open counts as foreign."""
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
        """The draft's tokens that would follow `token_ids`, the whole sequence; empty if the draft contradicts it."""
        mail = self._mail.get(key)
        if mail is None or mail.position > len(token_ids):
            return []
        generated = len(token_ids) - mail.position
        expired = self._clock() - mail.arrived > self._limits[2]
        if expired or generated >= len(mail.token_ids) or not self.agrees(mail, token_ids):
            self._drop(key)
            return []
        if not mail.used:
            mail.used = True
            self.counters.taken += 1
        return mail.token_ids[generated:].tolist()

    def dropped(self, key: bytes) -> int:
        """How many drafts of this mailbox were dropped unused."""
        return self._open.get(key, 0)

    @staticmethod
    def agrees(mail: Mail, token_ids: Sequence[int]) -> bool:
        """Whether the draft predicted every token generated since; only then is the rest worth verifying."""
        generated = len(token_ids) - mail.position
        return mail.token_ids[:generated].tolist() == list(token_ids[mail.position :])

    def _drop(self, key: bytes) -> None:
        """Discards a draft of no more use; one that was never used counts as late."""
        if not self._mail[key].used:
            self.counters.late += 1
            self._open[key] += 1
        self._discard(key)

    def _discard(self, key: bytes) -> None:
        if mail := self._mail.pop(key, None):
            self.bytes -= mail.size


class Inbox:
    """The engine's end of one web server's socket, and the mailboxes that it fills. No call waits.

    The scheduler owns it and closes it. Drafts with positions from `max_position` on or token ids from `vocab_size` on
    are dropped as malformed.
    """

    def __init__(self, socket: str, max_position: int, vocab_size: int, mailboxes: Mailboxes | None = None) -> None:
        self.mailboxes = Mailboxes() if mailboxes is None else mailboxes
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
        """Opens a mailbox, if there is room, and asks the web server for drafts."""
        if self.mailboxes.open(key):
            self._send(Opened(key))

    def receive(self, report: bool = False) -> None:
        """Reads up to MESSAGES_PER_STEP messages; sends changed counters every REPORT_SECONDS, or now if `report`."""
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
            self._next_report = 0.0  # counters are totals: the next report makes up for it
