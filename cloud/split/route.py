"""`GET /split`: a WebSocket on which edges send hidden states and the server answers with tokens."""

import asyncio
from contextlib import suppress

from aiohttp import WSCloseCode, web

from cloud.split.connection import EdgeConnection, SplitBackend, fault_frame
from cloud.websocket import ClientLeftError, ClientSocket
from common.http.messages import BODY_LIMIT, EXCHANGE, client_error, websocket
from common.protocol.split_frames import MAX_STATES


class SplitRoute:
    """The handler of one route. Sessions outlive a connection, so that an edge can reconnect; token requests do not."""

    def __init__(self, backend: SplitBackend) -> None:
        self._backend = backend

    @property
    def frame_limit(self) -> int:
        """Bytes of the largest frame that an edge may send."""
        return max(BODY_LIMIT, MAX_STATES * (self._backend.manifest.hidden + 1) * 4 + 1024)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        ws = await websocket(request, self.frame_limit)
        socket = ClientSocket(ws, request[EXCHANGE])
        connection = EdgeConnection(self._backend, request, socket)
        try:
            await connection.serve()
        except ClientLeftError:
            pass
        except (Exception, asyncio.CancelledError) as error:
            failure = client_error(request, error)
            request[EXCHANGE].failed = failure.status >= 500
            with suppress(ClientLeftError):
                await connection.send(fault_frame(failure))
                await socket.close(WSCloseCode.POLICY_VIOLATION if failure.status < 500 else WSCloseCode.GOING_AWAY)
        finally:
            await connection.leave()
        return ws
