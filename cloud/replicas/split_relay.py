"""Relays `GET /split`: a connection stays with one replica, which has its hidden states; an edge opens another one
where that is lost, and sends them again."""

from contextlib import suppress

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

from cloud.replicas.fleet import Fleet
from cloud.replicas.relay import TRY_ANOTHER, ReplicaLost
from cloud.replicas.replica import Replica
from cloud.replicas.request_key import NO_KEY
from cloud.replicas.stream_relay import open_upstream, send_upstream
from cloud.websocket import ClientLeftError, ClientSocket
from common.errors import NotFoundError, RequestError
from common.http.first_completed import first_completed
from common.http.messages import EXCHANGE, websocket

FRAME_LIMIT = 256 * 2**20
"""Bytes of a frame; the replica knows its model, and has a lower limit."""

NEVER_SENT = (None, 0, 1005, WSCloseCode.ABNORMAL_CLOSURE)
"""Close codes of a connection that has broken, or was closed without one (0): no close frame may have them."""


async def relay_split(request: web.Request, fleet: Fleet) -> web.WebSocketResponse:
    """The handler of GET /split."""
    replica, upstream = await _opened(request, fleet)
    replica.connections += 1
    try:
        ws = await websocket(request, FRAME_LIMIT)
        client = ClientSocket(ws, request[EXCHANGE])
        with suppress(ClientLeftError):
            await first_completed(_send_on(client, upstream), _pass_back(upstream, client))
        return ws
    finally:
        replica.connections -= 1
        await upstream.close()


async def _opened(request: web.Request, fleet: Fleet) -> tuple[Replica, aiohttp.ClientWebSocketResponse]:
    tried: set[str] = set()
    while True:
        replica = fleet.pick(NO_KEY, tried, load=lambda one: one.connections)
        try:
            return replica, await open_upstream(request, replica)
        except ReplicaLost:
            tried.add(replica.url)
        except aiohttp.WSServerHandshakeError as error:
            if error.status not in TRY_ANOTHER:
                raise _refusal(error.status) from error
            tried.add(replica.url)


def _refusal(status: int) -> RequestError:
    if status == 404:
        return NotFoundError("this cloud serves no tail of a model: set cloud.split.manifest")
    return RequestError(f"the replica refused a split session with {status}")


async def _send_on(client: ClientSocket, upstream: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        await send_upstream(upstream, await client.receive())


async def _pass_back(upstream: aiohttp.ClientWebSocketResponse, client: ClientSocket) -> None:
    async for message in upstream:
        if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
            text = message.type is WSMsgType.TEXT
            await client.send(message.data.encode() if text else message.data, text)
    code = upstream.close_code
    await client.close(WSCloseCode.GOING_AWAY if code in NEVER_SENT else code)
