"""Opens WebSockets to a server within the deadlines of its HTTP client."""

import asyncio

import aiohttp

from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy, WrongProtocol, unreachable
from common.http.retry import Unreachable
from common.protocol import codec

CLOSE_SECONDS = 0.1
"""How long closing waits for the server's close frame; a lost server sends none, and an answer waits meanwhile."""


async def open_websocket(client: HTTPClient, path: str) -> aiohttp.ClientWebSocketResponse:
    """An open WebSocket, closed by pings when the server is silent for `idle_timeout`.

    Raises Unreachable if no connection could be made, Busy for a 429, WrongProtocol if the server does not accept our
    subprotocol, RequestError for another 4xx but 401 and 408, EndpointError for any other status.
    """
    try:
        async with asyncio.timeout(client.config.first_byte_timeout):
            socket = await client.session().ws_connect(
                client.base_url + path,
                headers=client.headers(),
                protocols=(codec.SUBPROTOCOL,),
                heartbeat=client.config.idle_timeout * 2 / 3,  # plus half of it for the pong
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
    except aiohttp.WSServerHandshakeError as error:
        error_type: type[EndpointError | RequestError] = EndpointError
        if 400 <= error.status < 500 and error.status not in (401, 408):
            error_type = Busy if error.status == 429 else RequestError
        raise error_type(f"{client.base_url} refused a stream with {error.status}") from error
    except aiohttp.ClientConnectorError as error:
        raise unreachable(client.base_url, error) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unreachable(f"cannot reach {client.base_url} ({type(error).__name__})") from error
    if socket.protocol != codec.SUBPROTOCOL:
        await socket.close()
        raise WrongProtocol(f"{client.base_url} does not speak {codec.SUBPROTOCOL}: run the same version on both")
    return socket
