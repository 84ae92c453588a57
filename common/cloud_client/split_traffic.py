"""Counts the bytes of a split session's frames without sending any: what split_session.py would put on the wire.

Bytes of MessagePack, as answers count them: without the headers of WebSocket, TCP and IP.
"""

from functools import cache

from common.cloud_client.split_session import POSITIONS_PER_FRAME
from common.protocol import codec
from common.protocol.hidden_states import DTYPES, SCALE
from common.protocol.split_frames import AskFrame, OpenFrame, StatesFrame, TokenFrame
from common.types import GREEDY, Sampling, StateEncoding

SESSION, FINGERPRINT = "0" * 32, "0" * 64
"""Texts as long as real ones."""


def row_bytes(hidden: int, encoding: StateEncoding) -> int:
    """One position's state of `hidden` numbers, with its scale."""
    scale = SCALE.itemsize if encoding is StateEncoding.INT8 else 0
    return hidden * DTYPES[encoding].itemsize + scale


def open_bytes(encoding: StateEncoding) -> int:
    """The frame that begins a session."""
    return len(codec.encode(OpenFrame(session=SESSION, fingerprint=FINGERPRINT, encoding=encoding), codec.MSGPACK))


@cache
def states_bytes(start: int, count: int, hidden: int, encoding: StateEncoding) -> int:
    """The frames with the states of positions `start` ... `start + count` - 1; 0 for none."""
    ends = range(start, start + count, POSITIONS_PER_FRAME)
    parts = [(at, min(POSITIONS_PER_FRAME, start + count - at)) for at in ends]
    return sum(_states_frame(at, rows, hidden, encoding) for at, rows in parts)


def _states_frame(start: int, count: int, hidden: int, encoding: StateEncoding) -> int:
    scales = bytes(SCALE.itemsize * count) if encoding is StateEncoding.INT8 else b""
    frame = StatesFrame(session=SESSION, start=start, count=count, data=b"", scales=scales)
    data = count * hidden * DTYPES[encoding].itemsize  # not made, since it may be large
    return len(codec.encode(frame, codec.MSGPACK)) - _binary_header(0) + _binary_header(data) + data


def _binary_header(length: int) -> int:
    """The bytes that MessagePack writes before so many bytes of data."""
    return 2 if length < 1 << 8 else 3 if length < 1 << 16 else 5


@cache
def ask_bytes(number: int, position: int, sampling: Sampling = GREEDY) -> int:
    """The question of this number in its session, from 0 on, for the token after `position` positions."""
    return len(codec.encode(AskFrame(session=SESSION, id=number, position=position, sampling=sampling), codec.MSGPACK))


@cache
def token_bytes(number: int, position: int, computed: int, token_id: int) -> int:
    """The answer to that question, for which the cloud computed `computed` positions."""
    frame = TokenFrame(
        session=SESSION,
        id=number,
        token_id=token_id,
        confidence=1.0,
        logprob=0.0,
        cloud_ms=0.0,
        computed=computed,
        cached=position - computed,
    )
    return len(codec.encode(frame, codec.MSGPACK))
