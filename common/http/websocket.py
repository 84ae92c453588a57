"""A WebSocket to a server, opened within its client's deadlines. Knows nothing of what is said over it."""

import asyncio

import aiohttp

from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy, WrongProtocol
from common.http.retry import Unreachable
from common.protocol import codec

CLOSE_SECONDS = 0.1
"""How long leaving waits for the server's goodbye; one that is lost says none, and an answer waits to go on."""


async def open_websocket(client: HTTPClient, path: str) -> aiohttp.ClientWebSocketResponse:
    """The socket, whose peer is pinged so that one silent for `idle_timeout` is lost.

    Raises EndpointError (Unreachable where nothing could be connected, Busy for a 429, WrongProtocol for a server that
    does not agree to ours) or RequestError for a refusal.
    """
    try:
        async with asyncio.timeout(client.config.first_byte_timeout):
            socket = await client.session().ws_connect(
                client.base_url + path,
                headers=client.headers(),
                protocols=(codec.SUBPROTOCOL,),
                heartbeat=client.config.idle_timeout * 2 / 3,  # a pong has half as long again
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
    except aiohttp.WSServerHandshakeError as error:
        kind: type[EndpointError | RequestError] = EndpointError
        if 400 <= error.status < 500 and error.status not in (401, 408):
            kind = Busy if error.status == 429 else RequestError
        raise kind(f"{client.base_url} refused a stream with {error.status}") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unreachable(f"cannot reach {client.base_url} ({type(error).__name__})") from error
    if socket.protocol != codec.SUBPROTOCOL:
        await socket.close()
        raise WrongProtocol(f"{client.base_url} does not speak {codec.SUBPROTOCOL}: run the same version on both")
    return socket
