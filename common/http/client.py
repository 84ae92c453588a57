"""F4: typed calls to one server over pooled HTTP connections, within deadlines. Knows nothing of what is asked."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import zstandard

from common.config_schema import NO_KEY, HttpClientConfig, Secret
from common.errors import ConfigError, EndpointError, RequestError
from common.http.error_replies import check_protocol, refusal
from common.http.request_context import outgoing_headers
from common.http.retry import Broken, Unreachable, attempts
from common.http.urls import url_problem
from common.http.websocket_pool import KeptSockets
from common.protocol import codec

log = logging.getLogger(__name__)

COMPRESS_FROM = 1024
"""Bytes of a body that is worth compressing. Measured on token ids of our corpus: from here on zstd takes a third to a
half off a MessagePack body and two thirds off a JSON one, in 20 microseconds on both sides together."""
COMPRESS_LEVEL = 1
"""Of zstd: 3 saves 4 % more and takes twice as long."""
CEIL_NEVER = 1e9
"""aiohttp rounds timeouts above its threshold up to whole seconds."""

T = TypeVar("T")


@dataclass(slots=True)
class Traffic:
    """What a client has sent and received: calls, repeats among them, failures, bytes of bodies, waiting time."""

    calls: int = 0
    retries: int = 0
    failures: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    total_ms: float = 0.0

    def add(self, other: "Traffic") -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class HTTPClient:
    """Typed calls to one server. Owns its connections: `async with`, or `close()` when done.

    With `config.optimized` off (F4 off) it is the plain way: JSON, a new connection per call, nothing compressed, no
    retry. With `check_protocol` every answer must come from a server that speaks this project's `wire.PROTOCOL`.
    """

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
        self.kept_sockets = KeptSockets(self.config.connection_pool_size)
        """Open streams between two answers (F4)."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.kept_sockets.close()
        if self._session is not None:
            await self._session.close()

    async def post(
        self,
        path: str,
        body: object,
        type_: type[T],
        traffic: Traffic | None = None,
        first_byte: float | None = None,
    ) -> T:
        """Sends `body` and decodes the answer; what it cost is added to the client's traffic and to `traffic`.

        `first_byte`: seconds after which an answer that has not begun is lost, sooner than `config.timeout`. Raises
        EndpointError when the server cannot be used, RequestError (or a child) when it refuses the request.
        """
        return self.decoded(await self._call("POST", path, body, traffic, first_byte), type_)

    async def get(self, path: str, type_: type[T]) -> T:
        return self.decoded(await self._call("GET", path, None, None, None), type_)

    def decoded(self, data: bytes, type_: type[T]) -> T:
        """What the server said; raises EndpointError for nonsense."""
        try:
            return codec.decode(data, type_, self.content_type)
        except RequestError as error:
            raise EndpointError(f"{self.base_url} answers nonsense ({error.message})") from error

    async def check_ready(self) -> None:
        """Asks once, however retries are set, whether the server takes requests; raises EndpointError if not."""
        try:
            async with self._request("GET", "/ready", b"", self.content_type, Traffic(), self.config.timeout):
                pass
        except RequestError as error:
            raise EndpointError(f"{self.base_url}: {error.message}") from error

    async def healthy(self) -> bool:
        """Whether the server says that it is ready to answer."""
        try:
            await self.check_ready()
        except EndpointError:
            return False
        return True

    def session(self) -> aiohttp.ClientSession:
        """The connections, made on first use (a session belongs to the running event loop)."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self.config.connection_pool_size,
                    force_close=not self.config.optimized,
                    timeout_ceil_threshold=CEIL_NEVER,
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self.config.connect_timeout, ceil_threshold=CEIL_NEVER
                ),
            )
        return self._session

    def get_client_stats(self) -> dict[str, float]:
        """Calls, failures, repeats, bytes of bodies either way and the mean latency so far."""
        t = self.traffic
        return {
            "total_requests": t.calls,
            "failed_requests": t.failures,
            "retries": t.retries,
            "bytes_up": t.bytes_up,
            "bytes_down": t.bytes_down,
            "avg_latency_ms": t.total_ms / t.calls if t.calls else 0.0,
        }

    async def events(self, path: str, body: object) -> AsyncIterator[bytes]:
        """The data of a server-sent event stream, until `[DONE]`; raises like `post`, also for an error event.

        A stream may last; what may not take longer than `config.timeout` is each of its events.
        """
        wait = self.config.timeout
        async with self._request("POST", path, codec.encode(body), codec.JSON, Traffic(), wait) as response:
            while True:
                async with asyncio.timeout(wait):
                    line = await response.content.readline()
                data = line.removeprefix(b"data: ").strip()
                if data == b"[DONE]" or not line:
                    return
                if data.startswith(b'{"error"'):
                    raise refusal(self.base_url, 500, data, codec.JSON)
                if data:
                    yield data

    async def _call(
        self, method: str, path: str, body: object, traffic: Traffic | None, first_byte: float | None
    ) -> bytes:
        encoded = b"" if body is None else codec.encode(body, self.content_type)
        spent, retries = Traffic(), self.config.max_retries if self.config.optimized else 0
        try:
            async with asyncio.timeout(self.config.timeout):
                async for attempt in attempts(method, path, retries):
                    spent.retries += attempt.num > 1
                    with attempt:
                        return await self._once(method, path, encoded, spent, first_byte)
            raise AssertionError("stamina returns or raises")
        except TimeoutError as error:
            spent.failures += 1
            raise self._late(self.config.timeout) from error
        finally:
            self.traffic.add(spent)
            if traffic is not None:
                traffic.add(spent)

    async def _once(self, method: str, path: str, body: bytes, spent: Traffic, first_byte: float | None) -> bytes:
        async with self._request(method, path, body, self.content_type, spent, first_byte) as response:
            answer = await response.read()
            spent.bytes_down += len(answer)
            return answer

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: bytes, content_type: str, spent: Traffic, first_byte: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One HTTP exchange; everything that can go wrong in it becomes one of our errors.

        The answer must begin within `first_byte` seconds, connecting included.
        """
        started, status = time.perf_counter(), "lost"
        headers = {"Content-Type": content_type, "Accept": content_type, **self.headers()}
        if self._worth_compressing(body):
            body, headers["Content-Encoding"] = zstandard.compress(body, COMPRESS_LEVEL), "zstd"
        spent.calls += 1
        spent.bytes_up += len(body)
        try:
            async with asyncio.timeout(first_byte):
                response = await self.session().request(
                    method, self.base_url + path, data=body or None, headers=headers
                )
            async with response:
                status = str(response.status)
                if self._check_protocol:
                    check_protocol(self.base_url, response.status, response.headers.get(codec.PROTOCOL_HEADER))
                if response.status >= 400:
                    async with asyncio.timeout(self.config.timeout):
                        said = await response.read()
                    raise refusal(self.base_url, response.status, said, response.content_type)
                yield response
        except aiohttp.ConnectionTimeoutError as error:
            spent.failures += 1
            raise self._late(self.config.connect_timeout, "cannot reach {url} within {seconds:g} s") from error
        except aiohttp.ClientConnectorError as error:
            spent.failures += 1
            number = error.os_error.errno or 0  # negative where a name could not be resolved
            reason = os.strerror(number) if number > 0 else error.os_error.strerror or str(error.os_error)
            raise Unreachable(f"cannot reach {self.base_url} ({reason}): is that server running?") from error
        except TimeoutError as error:
            spent.failures += 1
            raise self._late(first_byte or self.config.timeout) from error
        except aiohttp.ClientError as error:
            spent.failures += 1
            raise Broken(f"{self.base_url} broke the connection ({type(error).__name__})") from error
        finally:
            took = (time.perf_counter() - started) * 1000
            spent.total_ms += took
            log.debug("%s %s%s %s %.1f ms, %d bytes up", method, self.base_url, path, status, took, len(body))

    def _late(self, seconds: float, says: str = "{url} did not answer within {seconds:g} s") -> EndpointError:
        return EndpointError(says.format(url=self.base_url, seconds=seconds))

    def _worth_compressing(self, body: bytes) -> bool:
        return self.config.optimized and self.config.compression == "auto" and len(body) >= COMPRESS_FROM

    def headers(self) -> dict[str, str]:
        """What every call says of itself: the request and trace that it is made for, and the API key."""
        key = {"Authorization": f"Bearer {self._api_key.reveal()}"} if self._api_key else {}
        return {**outgoing_headers(), **key}
