"""`GET /split`: a WebSocket over which hidden states go up and tokens come down. Knows neither vLLM nor frames."""

import asyncio
from contextlib import suppress

from aiohttp import WSCloseCode, web

from cloud.split.connection import EdgeConnection, LeftError, Served, fault
from common.http.messages import BODY_LIMIT, EXCHANGE, client_error, websocket
from common.protocol.split_frames import MAX_STATES


class SplitRoute:
    """The handler of one route. Sessions outlive a connection, so that an edge can come back; its questions do not."""

    def __init__(self, served: Served) -> None:
        self._served = served

    @property
    def frame_limit(self) -> int:
        """Bytes of the largest frame that an edge may send."""
        return max(BODY_LIMIT, MAX_STATES * (self._served.manifest.hidden + 1) * 4 + 1024)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        ws = await websocket(request, self.frame_limit)
        connection = EdgeConnection(self._served, request, ws)
        try:
            await connection.serve()
        except LeftError:
            pass
        except (Exception, asyncio.CancelledError) as error:
            failure = client_error(request, error)
            request[EXCHANGE].failed = failure.status >= 500
            with suppress(LeftError):
                await connection.send(fault(failure))
                await ws.close(code=WSCloseCode.POLICY_VIOLATION if failure.status < 500 else WSCloseCode.GOING_AWAY)
        finally:
            await connection.leave()
        return ws
