"""F4: typed calls to one server over pooled HTTP connections. Knows nothing of what is asked."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec
import stamina

from common import wire
from common.config import NO_KEY, HttpClientConfig, Secret
from common.errors import ContextLengthError, EndpointError, PrefixUnknown, RequestError, VocabularyError
from common.request_id import outgoing_headers

T = TypeVar("T")


class ErrorBody(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None


class ErrorReply(msgspec.Struct):
    error: ErrorBody


class Unreachable(EndpointError):
    """No connection could be made, so nothing was done there: the one failure that is simply tried again."""


@dataclass(slots=True)
class Traffic:
    """What a client has sent and received: calls, bytes of bodies, milliseconds waited, failures."""

    calls: int = 0
    failures: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    total_ms: float = 0.0

    def add(self, other: "Traffic") -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class HTTPClient:
    """Typed calls to one server. Owns its connections: `async with`, or `close()` when done.

    With `config.optimized` off (F4 off) it is the plain way: JSON, a new connection per call, no retry.
    """

    def __init__(self, base_url: str, config: HttpClientConfig | None = None, api_key: Secret = NO_KEY) -> None:
        self.base_url = base_url.rstrip("/")
        self.config = config or HttpClientConfig()
        self._api_key = api_key
        self.traffic = Traffic()
        self.content_type = wire.MSGPACK if self.config.optimized else wire.JSON
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: object, type_: type[T], traffic: Traffic | None = None) -> T:
        """Sends `body` and decodes the answer; what it cost is added to the client's traffic and to `traffic`.

        Raises EndpointError when the server cannot be used, RequestError (or a child) when it refuses the request.
        """
        return wire.decode(await self._call("POST", path, body, traffic), type_, self.content_type)

    async def get(self, path: str, type_: type[T]) -> T:
        return wire.decode(await self._call("GET", path, None, None), type_, self.content_type)

    async def healthy(self) -> bool:
        """Whether the server says that it is ready to answer."""
        try:
            await self._once("GET", "/ready", b"", Traffic())
        except (EndpointError, RequestError):
            return False
        return True

    def session(self) -> aiohttp.ClientSession:
        """The connections, made on first use (a session belongs to the running event loop)."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self.config.connection_pool_size, force_close=not self.config.optimized
                ),
                timeout=aiohttp.ClientTimeout(total=self.config.timeout, connect=min(5.0, self.config.timeout)),
            )
        return self._session

    def get_client_stats(self) -> dict[str, float]:
        """Calls, failures, bytes of bodies either way and the mean latency so far."""
        t = self.traffic
        return {
            "total_requests": t.calls,
            "failed_requests": t.failures,
            "bytes_up": t.bytes_up,
            "bytes_down": t.bytes_down,
            "avg_latency_ms": t.total_ms / t.calls if t.calls else 0.0,
        }

    async def events(self, path: str, body: object) -> AsyncIterator[bytes]:
        """The data of a server-sent event stream, until `[DONE]`; raises like `post`, also for an error event."""
        async with self._request("POST", path, wire.encode(body), wire.JSON, Traffic()) as response:
            async for line in response.content:
                data = line.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    return
                if data.startswith(b'{"error"'):
                    raise self._refusal(500, data, wire.JSON)
                if data:
                    yield data

    async def _call(self, method: str, path: str, body: object, traffic: Traffic | None) -> bytes:
        encoded = b"" if body is None else wire.encode(body, self.content_type)
        spent = Traffic()
        attempts = 1 + (self.config.max_retries if self.config.optimized else 0)
        try:
            async for attempt in stamina.retry_context(
                on=Unreachable,
                attempts=attempts,
                timeout=self.config.timeout,
                wait_initial=0.05,
                wait_max=1.0,
                wait_jitter=0.1,
            ):
                with attempt:
                    return await self._once(method, path, encoded, spent)
            raise AssertionError("stamina returns or raises")
        finally:
            self.traffic.add(spent)
            if traffic is not None:
                traffic.add(spent)

    async def _once(self, method: str, path: str, body: bytes, spent: Traffic) -> bytes:
        async with self._request(method, path, body, self.content_type, spent) as response:
            answer = await response.read()
            spent.bytes_up += len(body)
            spent.bytes_down += len(answer)
            return answer

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: bytes, content_type: str, spent: Traffic
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One HTTP exchange; everything that can go wrong in it becomes one of our errors."""
        started = time.perf_counter()
        spent.calls += 1
        headers = {"Content-Type": content_type, "Accept": content_type, **self.headers()}
        try:
            async with self.session().request(
                method, self.base_url + path, data=body or None, headers=headers
            ) as response:
                if response.status >= 400:
                    raise self._refusal(response.status, await response.read(), response.content_type)
                yield response
        except aiohttp.ClientConnectorError as error:
            spent.failures += 1
            reason = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
            raise Unreachable(f"cannot reach {self.base_url} ({reason}): is that server running?") from error
        except TimeoutError as error:
            spent.failures += 1
            raise EndpointError(f"{self.base_url} did not answer within {self.config.timeout:g} s") from error
        except aiohttp.ClientError as error:
            spent.failures += 1
            raise EndpointError(f"{self.base_url} broke the connection ({type(error).__name__})") from error
        finally:
            spent.total_ms += (time.perf_counter() - started) * 1000

    def headers(self) -> dict[str, str]:
        """What every call says of itself: the request and trace that it is made for, and the API key."""
        key = {"Authorization": f"Bearer {self._api_key.reveal()}"} if self._api_key else {}
        return {**outgoing_headers(), **key}

    def _refusal(self, status: int, body: bytes, content_type: str) -> EndpointError | RequestError:
        """The server's error object as ours: 4xx is our request's fault, everything else the server's."""
        try:
            error = wire.decode(body, ErrorReply, content_type).error
        except RequestError:
            return EndpointError(f"{self.base_url} answered {status}")
        kinds: dict[str | None, type[RequestError | EndpointError]] = {
            kind.code: kind for kind in (PrefixUnknown, ContextLengthError, VocabularyError)
        }
        if error.code in kinds:
            return kinds[error.code](error.message, error.param)
        if 400 <= status < 500 and status not in (401, 408, 429):
            return RequestError(error.message, error.param)
        return EndpointError(f"{self.base_url} answered {status}: {error.message}")
