"""What the web server and the engine process tell each other about drafts for running requests."""

from dataclasses import dataclass
from typing import NamedTuple

from msgspec import Struct

MAX_MAILBOXES = 4096
"""Open at once in one engine process."""


class Address(NamedTuple):
    """Where a request's drafts arrive: the web server's socket, and the secret key of this one request."""

    socket: str
    key: bytes


class DraftMessage(Struct, array_like=True, forbid_unknown_fields=True):
    """Web server to engine: what may follow the first `position` tokens of a request."""

    key: bytes
    position: int
    token_ids: list[int]


class Opened(Struct, tag="opened", array_like=True):
    """Engine to web server: this engine process takes the drafts for `key`."""

    key: bytes


class Counters(Struct, tag="counters", array_like=True):
    """Engine to web server: totals since the start. `taken` counts drafts of which some token was verified.

    The next four count dropped drafts by reason. `late`: the answer had passed or contradicted the whole draft.
    `foreign`: no open mailbox has its key. `malformed`: it could not be read. `full`: no memory was left for it.
    `drafted` and `accepted` count draft tokens verified and accepted.
    """

    taken: int = 0
    late: int = 0
    foreign: int = 0
    malformed: int = 0
    full: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class DraftProgress:
    """One request so far: engine steps that drew tokens, draft tokens verified and accepted, drafts dropped unused."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    dropped: int = 0
