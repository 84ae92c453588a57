"""Frames that no edge sends, to a real cloud's WebSocket: an answer, an error frame or a close; no harm to others."""

import asyncio
from typing import Any, cast

import aiohttp
import msgspec
from aiohttp import WSMsgType
from hypothesis import given
from hypothesis import strategies as st

from common.protocol import codec
from common.protocol.stream_frames import DraftFrame, EndFrame, ErrorFrame, ServerFrame, StartFrame, TokensFrame
from common.types import Sampling
from tests.conftest import Servers
from tests.fuzz.budget import examples
from tests.fuzz.mutations import altered, damaged

START = StartFrame(token_ids=[5, 6, 7], max_tokens=4, sampling=Sampling(temperature=0.5, seed=1), keep=True)
DRAFT = DraftFrame(position=3, token_ids=[8, 9])


def frames() -> st.SearchStrategy[bytes]:
    valid = st.sampled_from([START, DRAFT])
    whole = valid.map(msgspec.msgpack.encode)
    fields = valid.flatmap(lambda frame: altered(msgspec.json.decode(msgspec.json.encode(frame))))
    return whole | whole.flatmap(damaged) | fields.map(shortened).map(msgspec.json.encode) | st.binary(max_size=40)


def shortened(frame: dict[str, Any]) -> dict[str, Any]:
    """An answer may fill the context, which takes a minute on a busy machine."""
    tokens = frame.get("max_tokens")
    return {**frame, "max_tokens": 8} if isinstance(tokens, int) and tokens > 8 else frame


def test_no_frame_breaks_the_cloud(servers: Servers) -> None:
    url = servers.cloud_url.replace("http", "ws") + "/stream"
    with asyncio.Runner() as runner:
        truth = runner.run(answered(url))

        @given(sent=st.lists(st.tuples(frames(), st.booleans()), min_size=1, max_size=5))
        @examples(40)
        def holds(sent: list[tuple[bytes, bool]]) -> None:
            runner.run(exchange(url, sent))

        holds()
        assert runner.run(answered(url)) == truth


async def exchange(url: str, sent: list[tuple[bytes, bool]]) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=(codec.SUBPROTOCOL,)) as ws:
        for data, as_text in sent:
            if ws.closed:
                break
            await (ws.send_str(data.decode(errors="replace")) if as_text else ws.send_bytes(data))
        async with asyncio.timeout(60):
            await read_to_the_end(ws)


async def read_to_the_end(ws: aiohttp.ClientWebSocketResponse) -> None:
    """Until the answer's end, an error or a close; each frame must be one of a server's."""
    while True:
        message = await ws.receive()
        if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
            assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED)
            assert ws.close_code != aiohttp.WSCloseCode.INTERNAL_ERROR
            return
        content = codec.MSGPACK if message.type is WSMsgType.BINARY else codec.JSON
        data = message.data if isinstance(message.data, bytes) else message.data.encode()
        frame = codec.decode(data, cast(Any, ServerFrame), content)
        if isinstance(frame, ErrorFrame):
            assert frame.error.type != "server_error", frame.error
        if isinstance(frame, EndFrame | ErrorFrame):
            return


async def answered(url: str) -> list[int]:
    """The greedy answer of an honest edge."""
    ids: list[int] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=(codec.SUBPROTOCOL,)) as ws:
        await ws.send_bytes(msgspec.msgpack.encode(StartFrame(token_ids=[5, 6, 7], max_tokens=8)))
        while True:
            frame = codec.decode(await ws.receive_bytes(), cast(Any, ServerFrame), codec.MSGPACK)
            if isinstance(frame, EndFrame):
                return ids
            assert isinstance(frame, TokensFrame)
            ids += frame.token_ids
