"""Keeps the conversations of Responses replies in memory, for requests that continue them, within bounds."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from common.errors import RequestError
from common.protocol.openai import Message

MAX_RESPONSES = 1000
MAX_BYTES = 64 * 2**20


class ResponseNotFound(RequestError):
    """With OpenAI's code for it."""

    code = "previous_response_not_found"


class KeptConversation(NamedTuple):
    """`private`: a request of it was, by a field, a header or its key; so is every one that continues it."""

    messages: Sequence[Message]
    private: bool = False


class ResponseStore:
    """Conversations by the reply's id, the least recently used dropped first; each tenant finds its own only."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_responses: int = MAX_RESPONSES) -> None:
        self._max_bytes = max_bytes
        self._max_responses = max_responses
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self.bytes = 0
        """Kept now."""

    def put(self, tenant: str, id: str, conversation: KeptConversation) -> None:
        """Keeps a conversation, if it is not larger than all the room."""
        data = msgspec.msgpack.encode(conversation)
        if len(data) > self._max_bytes:
            return
        self._kept[tenant, id] = data
        self.bytes += len(data)
        while self.bytes > self._max_bytes or len(self._kept) > self._max_responses:
            self.bytes -= len(self._kept.popitem(last=False)[1])

    def get(self, tenant: str, id: str) -> KeptConversation:
        """The conversation; raises ResponseNotFound for an id that is unknown, forgotten or another tenant's."""
        data = self._kept.get((tenant, id))
        if data is None:
            reason = "it was never given, not stored, or is forgotten: send the whole conversation"
            raise ResponseNotFound(f"no response {id!r} here: {reason}", param="previous_response_id")
        self._kept.move_to_end((tenant, id))
        return msgspec.msgpack.decode(data, type=KeptConversation)
