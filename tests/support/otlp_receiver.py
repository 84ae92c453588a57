"""A small OTLP/HTTP receiver on loopback: keeps the spans that it is sent, as a collector would."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

PATIENCE = 30.0
"""Seconds until spans that do not come count as lost."""


@dataclass(frozen=True)
class ReceivedSpan:
    """One span; ids in hexadecimal digits, an empty `parent` begins a trace."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: str
    failed: bool
    began: int
    ended: int
    attributes: dict[str, Any]


@dataclass
class Receiver:
    """The spans so far, in the order in which they ended; `url` is what OTEL_EXPORTER_OTLP_ENDPOINT takes."""

    url: str
    spans: list[ReceivedSpan] = field(default_factory=list)

    def of(self, trace: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.trace == trace]

    def wait(self, enough: Callable[[list[ReceivedSpan]], object]) -> None:
        """Until `enough` of the spans so far is true."""
        for _ in range(int(PATIENCE / 0.05)):
            if enough(self.spans):
                return
            time.sleep(0.05)
        raise AssertionError(f"only {[(span.service, span.name) for span in self.spans]} came")


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            known = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            if known:
                receiver.spans += _decoded(body)
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _decoded(body: bytes) -> Iterator[ReceivedSpan]:
    for of_service in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _plain(of_service.resource.attributes)["service.name"]
        for of_scope in of_service.scope_spans:
            for span in of_scope.spans:
                yield ReceivedSpan(
                    service,
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    span.status.code == Status.STATUS_CODE_ERROR,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _plain(span.attributes),
                )


def _plain(attributes: Any) -> dict[str, Any]:
    values = {one.key: one.value for one in attributes}
    return {key: _value(value) for key, value in values.items()}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
