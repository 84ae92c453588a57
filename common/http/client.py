"""Makes typed calls to one server over pooled HTTP connections, with deadlines and retries (F4)."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self, TypeVar

import aiohttp

from common.config_schema import HttpClientConfig
from common.config_values import NO_KEY, Secret, url_problem
from common.errors import ConfigError, EndpointError, RequestError
from common.http.compression import COMPRESS_MIN_BYTES, compressed
from common.http.error_replies import check_protocol, error_from_reply, named_losses, no_answer
from common.http.patience import CALL_ID_HEADER, CALL_ROUTE, Call, RawReply, late_reply
from common.http.request_context import outgoing_headers
from common.http.retry import attempts
from common.http.traffic import Traffic
from common.http.websocket_pool import WebSocketPool
from common.protocol import codec

log = logging.getLogger(__name__)

CEIL_THRESHOLD = 1e9
"""Seconds above which aiohttp rounds timeouts up to whole seconds: never."""

T = TypeVar("T")


class HTTPClient:
    """Typed calls to one server. Owns its connections: use `async with`, or call `close()`.

    Without `config.optimized` (F4 off) it sends uncompressed JSON over a new connection per call and never retries.
    With `check_protocol` it raises WrongProtocol unless the server speaks `codec.PROTOCOL`.
    """

    READY = "/ready"
    """The route that answers where the server is ready."""
    KEEPS_CONNECTIONS = True
    """Whether a connection serves one call after another (F4)."""

    def __init__(
        self,
        base_url: str,
        config: HttpClientConfig | None = None,
        api_key: Secret = NO_KEY,
        check_protocol: bool = False,
    ) -> None:
        if problem := url_problem(base_url):
            raise ConfigError(problem)
        self.base_url = base_url.rstrip("/")
        self.config = config or HttpClientConfig()
        self.traffic = Traffic()
        self.content_type = codec.MSGPACK if self.config.optimized else codec.JSON
        self._api_key = api_key
        self._check_protocol = check_protocol
        self._session: aiohttp.ClientSession | None = None
        self.idle_websockets = WebSocketPool(self.config.connection_pool_size)
        """Open WebSockets that wait for the next stream (F4)."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.idle_websockets.close()
        if self._session is not None:
            await self._session.close()

    async def post(
        self,
        path: str,
        body: object,
        type_: type[T],
        traffic: Traffic | None = None,
        first_byte: float | None = None,
        on_work: Callable[[], None] = lambda: None,
        seconds: float | None = None,
    ) -> T:
        """Sends `body` and decodes the reply as `type_`; adds the call to the client's traffic and to `traffic`.

        `first_byte`: seconds within which the reply must begin, in place of `config.timeout`, unless the server says
        that it works on the call; `on_work` is called each time. `seconds`: in place of `config.timeout`.
        Raises EndpointError when the server cannot be used, RequestError (or a child) when it refuses the request.
        """
        call = self._call("POST", path, codec.encode(body, self.content_type))
        call.seconds = seconds or call.seconds
        call.patience, call.on_work = first_byte or call.seconds, on_work
        try:
            return self.decode((await self._send(call)).body, type_)
        finally:
            if traffic is not None:
                traffic.add(call.spent)

    async def get(self, path: str, type_: type[T]) -> T:
        return self.decode((await self._send(self._call("GET", path))).body, type_)

    async def reply(self, path: str, body: bytes) -> RawReply:
        """The reply to a body of JSON as it comes, whatever its status; raises EndpointError when none comes."""
        call = Call("POST", path, body, codec.JSON, self.config.timeout, self.config.timeout, any_status=True)
        return await self._send(call)

    def _call(self, method: str, path: str, body: bytes = b"") -> Call:
        return Call(method, path, body, self.content_type, self.config.timeout, self.config.timeout)

    def decode(self, data: bytes, type_: type[T]) -> T:
        """A reply of this server as `type_`; raises EndpointError if it is not one."""
        try:
            return codec.decode(data, type_, self.content_type)
        except RequestError as error:
            raise EndpointError(f"{self.base_url} answers nonsense ({error.message})") from error

    async def check_ready(self) -> None:
        """Calls GET `READY` once, without retries; raises EndpointError unless the server is ready."""
        try:
            async with self._exchange(self._call("GET", self.READY)):
                pass
        except RequestError as error:
            raise EndpointError(f"{self.base_url}: {error.message}") from error

    async def healthy(self) -> bool:
        """Whether GET /ready succeeds."""
        try:
            await self.check_ready()
        except EndpointError:
            return False
        return True

    def session(self) -> aiohttp.ClientSession:
        """The connection pool, made on first use because it belongs to the running event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self.config.connection_pool_size,
                    force_close=not (self.config.optimized and self.KEEPS_CONNECTIONS),
                    timeout_ceil_threshold=CEIL_THRESHOLD,
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self.config.connect_timeout, ceil_threshold=CEIL_THRESHOLD
                ),
            )
        return self._session

    def get_client_stats(self) -> dict[str, float]:
        """Calls, failures, retries, bytes of bodies each way and the mean latency in milliseconds so far."""
        return self.traffic.stats()

    async def events(self, path: str, body: object, traffic: Traffic | None = None) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event until `[DONE]`; raises like `post`, also for an error event.

        `config.timeout` limits the wait for each event or comment, not the whole stream. The call is added to the
        client's traffic and to `traffic`.
        """
        wait = self.config.timeout
        call = Call("POST", path, codec.encode(body), codec.JSON, wait, wait)
        try:
            async with self._exchange(call) as response:
                while True:
                    async with asyncio.timeout(wait):
                        line = await response.content.readline()
                    call.spent.bytes_down += len(line)
                    field, _, data = line.partition(b":")
                    data = data.strip()
                    if data == b"[DONE]" or not line:
                        return
                    if field != b"data" or not data:
                        continue  # without a name it is a comment: the server works
                    if data.startswith(b'{"error"'):
                        raise self._error(500, data, codec.JSON)
                    yield data
        finally:
            for total in filter(None, (self.traffic, traffic)):
                total.add(call.spent)

    async def _send(self, call: Call) -> RawReply:
        """The reply; repeats the call where that is safe."""
        spent, retries = call.spent, self.config.max_retries if self.config.optimized else 0
        try:
            async with asyncio.timeout(call.seconds) as call.deadline:
                async for attempt in attempts(call.method, call.path, retries):
                    spent.retries += attempt.num > 1
                    with attempt:
                        async with self._exchange(call) as response:
                            reply = RawReply(response.status, response.headers, await response.read())
                        spent.bytes_down += len(reply.body)
                        return reply
            raise AssertionError("stamina returns or raises")
        except TimeoutError as error:
            spent.failures += 1
            raise no_answer(self.base_url, call.seconds) from error
        finally:
            self.traffic.add(spent)

    @asynccontextmanager
    async def _exchange(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """One HTTP exchange, whose failures become EndpointError or RequestError; adds it to `call.spent`."""
        started, status, spent, body = time.perf_counter(), "lost", call.spent, call.body
        headers = {"Content-Type": call.content_type, "Accept": call.content_type, **self.headers()}
        if self._should_compress(body):
            body, headers["Content-Encoding"] = compressed(body), "zstd"
        spent.calls, spent.bytes_up = spent.calls + 1, spent.bytes_up + len(body)
        try:
            with named_losses(self.base_url, self.config.connect_timeout, call):
                async with await self._begin(call, body, headers) as response:
                    status = str(response.status)
                    if self._check_protocol:
                        check_protocol(self.base_url, response.status, response.headers.get(codec.PROTOCOL_HEADER))
                    if response.status >= 400 and not call.any_status:
                        async with asyncio.timeout(self.config.timeout):
                            reply = await response.read()
                        raise self._error(response.status, reply, response.content_type)
                    yield response
        finally:
            elapsed_ms = (time.perf_counter() - started) * 1000
            spent.total_ms += elapsed_ms
            log.debug("%s %s%s %s %.1f ms", call.method, self.base_url, call.path, status, elapsed_ms)

    async def _begin(self, call: Call, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Sends the request; returns when the reply begins. Raises TimeoutError when the server shows no work on it."""
        headers[CALL_ID_HEADER] = call_id = uuid.uuid4().hex
        request = self.session().request(call.method, self.base_url + call.path, data=body or None, headers=headers)
        if call.method == "GET":
            async with asyncio.timeout(call.patience):
                return await request
        return await late_reply(request, call, lambda: self._works_on(call_id))

    async def _works_on(self, call_id: str) -> bool:
        """Whether the server says that it works on a call."""
        with suppress(EndpointError, RequestError):
            async with self._exchange(self._call("GET", CALL_ROUTE.format(id=call_id))):
                return True
        return False

    def _error(self, status: int, body: bytes, content_type: str) -> EndpointError | RequestError:
        """The error that a reply stands for."""
        return error_from_reply(self.base_url, status, body, content_type)

    def _should_compress(self, body: bytes) -> bool:
        return self.config.optimized and self.config.compression == "auto" and len(body) >= COMPRESS_MIN_BYTES

    def headers(self) -> dict[str, str]:
        """The headers of every call: the request id and trace context it is made for, and the API key."""
        key = {"Authorization": f"Bearer {self._api_key.reveal()}"} if self._api_key else {}
        return {**outgoing_headers(), **key}
