"""Passes a request on to a replica and its response back, both as they come; to another replica where one is lost.

All that a replica does for a request ends with it, so a request may be sent again as long as no byte of a response has
been passed on: a verify by its idempotency, anything else because nobody has seen the first answer.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs, web

from cloud.replicas.fleet import Fleet
from cloud.replicas.replica import Replica
from cloud.replicas.request_key import RequestKey, key_of
from common.errors import EndpointError, EngineError, FrameworkError, RequestError
from common.http.compression import decompressed
from common.http.messages import BODY_LIMIT, EXCHANGE, REQUEST_ID, TENANT, error_object, read_body, sent
from common.http.patience import CALL_ID_HEADER
from common.protocol import codec

OF_ONE_CONNECTION = frozenset(
    ("Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect", "Content-Length")
)
"""Headers that concern the connection and not the message; likewise below."""
NOT_SENT_ON = OF_ONE_CONNECTION | {
    *("Host", "Origin", "X-Request-Id"),  # the front has judged what a page's origin may ask
    *("Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions"),
}
NOT_PASSED_BACK = OF_ONE_CONNECTION | {"Date", "Server"}
LOST_ENGINE = 503
TRY_ANOTHER = (429, LOST_ENGINE)
"""A replica that has no room, or whose engine is lost, has done nothing."""
OWN = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""What aiohttp would add to a request that does not have it."""


MAX_LOSSES = 2
"""So many replicas, or their engines, may be lost at work on one request: it may be what ends them, and would end all
others, too."""


class ReplicaLost(EndpointError):
    """A replica was lost while it worked on a request."""


class ReplicaUnreached(ReplicaLost):
    """A replica was lost before it got the request."""


class RequestRelay:
    """Passes requests on; knows which replica works on which call."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._calls: dict[str, Replica | None] = {}
        """By the ids of running calls; None between two replicas."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request) if request.can_read_body else b""
        call = request.headers.get(CALL_ID_HEADER, "")
        self._calls[call] = None
        try:
            return await self._answer(request, body, call)
        finally:
            self._calls.pop(call, None)

    async def works_on(self, request: web.Request) -> bool:
        """Whether a call is worked on: as its replica says, or because it is being sent to another one."""
        call = request.match_info["id"]
        if call not in self._calls:
            return False
        replica = self._calls[call]
        if replica is None or replica.draining:  # one that drains accepts no connections, and ends what it began
            return True
        with suppress(aiohttp.ClientError):
            url = f"{replica.url}/calls/{quote(call, safe='')}"
            async with replica.http_session().get(url, headers=keys_of(request)) as response:
                return response.status == 200
        return self._calls.get(call, replica) is not replica

    async def _answer(self, request: web.Request, body: bytes, call: str) -> web.StreamResponse:
        key = await self._key(request, body)
        tried: set[str] = set()
        refusal: web.Response | None = None
        losses = 0
        while losses < MAX_LOSSES:
            try:
                replica = self._fleet.pick(key, tried)
            except EngineError:
                if refusal is None:
                    raise
                return refusal
            tried.add(replica.url)
            self._calls[call] = replica
            try:
                with self._fleet.using(replica):
                    async with self._exchange(request, replica, body) as response:
                        if response.status not in TRY_ANOTHER:
                            return await _passed_back(request, response)
                        losses += response.status == LOST_ENGINE
                        refusal = await _whole(response)
            except ReplicaUnreached:
                pass
            except ReplicaLost:
                losses += 1
            finally:
                self._calls[call] = None
        if refusal is None:
            raise too_many_losses()
        return refusal

    async def _key(self, request: web.Request, body: bytes) -> RequestKey:
        if request.method != hdrs.METH_POST:
            return key_of("", b"", "", "")
        encoded = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
        plain = decompressed(body, BODY_LIMIT) if encoded == "zstd" else body
        key = key_of(request.path, plain, request.content_type, request[TENANT])
        if key.text is None or sum(one.usable for one in self._fleet.replicas) < 2:
            return key
        return key._replace(token_ids=await self._tokens(request, key))

    async def _tokens(self, request: web.Request, key: RequestKey) -> list[int]:
        """The token ids of a prompt in text, as a replica reads it; none if it does not tell."""
        replica = self._fleet.pick(key)
        with suppress(aiohttp.ClientError, RequestError):
            session = replica.http_session()
            async with session.post(f"{replica.url}/tokenize", json=key.text, headers=keys_of(request)) as response:
                if response.status == 200:
                    tokens: list[int] = codec.decode(await response.read(), dict[str, Any])["tokens"]
                    return tokens
        return []

    @asynccontextmanager
    async def _exchange(
        self, request: web.Request, replica: Replica, body: bytes
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The replica's response; raises ReplicaLost where there is none. Leaving it early ends the replica's work."""
        try:
            response = await replica.http_session().request(
                request.method,
                replica.url + _target(request),
                data=body or None,
                headers=headers_on(request),
                skip_auto_headers=OWN,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ReplicaUnreached(f"replica {replica.name} cannot be reached ({type(error).__name__})") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ReplicaLost(f"replica {replica.name} is lost ({type(error).__name__})") from error
        async with response:
            yield response


def too_many_losses() -> EngineError:
    return EngineError(f"{MAX_LOSSES} replicas were lost while they worked on this; no other one is asked")


def _target(request: web.Request) -> str:
    """Path and query, as they were sent: never what could make the front ask another host."""
    target = request.rel_url.raw_path_qs
    if not target.startswith("/"):
        raise RequestError("the request's target must be a path")
    return target


def keys_of(request: web.Request) -> dict[str, str]:
    """The headers that show the request's API key, for what the front asks a replica on its behalf."""
    return {name: request.headers[name] for name in (hdrs.AUTHORIZATION, "X-Api-Key") if name in request.headers}


def headers_on(request: web.Request) -> dict[str, str]:
    """The headers with which a request goes to a replica: its own, under the id that the front gave it."""
    own = {name: value for name, value in request.headers.items() if name.title() not in NOT_SENT_ON}
    return {**own, "X-Request-Id": request[REQUEST_ID]}


def _headers_back(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.title() not in NOT_PASSED_BACK}


async def _whole(response: aiohttp.ClientResponse) -> web.Response:
    return web.Response(status=response.status, headers=_headers_back(response), body=await _read(response.read()))


async def _read(reading: Any) -> bytes:
    try:
        data: bytes = await reading
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ReplicaLost(f"the replica is lost ({type(error).__name__})") from error
    return data


async def _passed_back(request: web.Request, response: aiohttp.ClientResponse) -> web.StreamResponse:
    """The response, piece by piece; one whose replica is lost ends with an error event, or breaks."""
    if response.content_length is not None or request.method == hdrs.METH_HEAD:
        return await _whole(response)
    passed = web.StreamResponse(status=response.status, headers=_headers_back(response))
    first = await _read(response.content.readany())
    await passed.prepare(request)
    exchange = request[EXCHANGE]
    piece = first
    while piece:
        await sent(request, passed.write(piece))
        exchange.record_sent(len(piece))
        try:
            piece = await _read(response.content.readany())
        except ReplicaLost as error:
            exchange.failed = True
            if response.content_type != "text/event-stream":
                return _broken(request, passed)
            piece = b"data: " + codec.encode(error_object(_for_client(error))) + b"\n\n"
            await sent(request, passed.write(piece))
            exchange.record_sent(len(piece))
            break
    exchange.complete = not exchange.failed
    with suppress(ConnectionError):
        await sent(request, passed.write_eof())
    return passed


def _for_client(error: ReplicaLost) -> FrameworkError:
    return EngineError(f"{error.message} in the middle of its answer; ask again")


def _broken(request: web.Request, passed: web.StreamResponse) -> web.StreamResponse:
    """Ends a response so that its client sees that it is not complete."""
    if request.transport is not None:
        request.transport.abort()
    return passed
