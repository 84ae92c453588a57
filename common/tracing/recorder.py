"""Records spans with OpenTelemetry's SDK and sends them over OTLP/HTTP. Imported only where tracing is on."""

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from common.tracing.context import current_traceparent
from common.tracing.spans import AttributeValue, SpanKind

CONTENT_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
KINDS = {
    SpanKind.INTERNAL: otel.SpanKind.INTERNAL,
    SpanKind.SERVER: otel.SpanKind.SERVER,
    SpanKind.CLIENT: otel.SpanKind.CLIENT,
}


class OpenTelemetryRecorder:
    """Owns the SDK's tracer and the thread that exports; `close` sends what is left.

    The provider is this server's own and not the process's global one, which is vLLM's in the cloud.
    """

    def __init__(self, service: str) -> None:
        """`service`: the name of this server, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES give another."""
        named = Resource.create().attributes.get("service.name", "unknown_service")
        name = service if str(named).startswith("unknown_service") else named
        self.content = os.environ.get(CONTENT_VARIABLE, "").lower() in ("true", "span_only", "span_and_event")
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("edgecloud")

    def span(self, name: str, kind: SpanKind) -> "RecordedSpan":
        return RecordedSpan(self._tracer, name, kind)

    def close(self) -> None:
        self._provider.shutdown()


class RecordedSpan:
    """See `common.tracing.spans.Span`."""

    def __init__(self, tracer: otel.Tracer, name: str, kind: SpanKind) -> None:
        self._tracer, self._name, self._kind = tracer, name, kind
        self._outer = ""
        self._span: otel.Span = otel.INVALID_SPAN

    def __enter__(self) -> Self:
        self._outer = current_traceparent.get()
        parent = _parent(self._outer, remote=self._kind is SpanKind.SERVER)
        self._span = self._tracer.start_span(self._name, parent, KINDS[self._kind])
        current_traceparent.set(_traceparent(self._span.get_span_context()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # By value: a block around a `yield` may be left in another context than it was entered in.
        current_traceparent.set(self._outer)
        if isinstance(error, Exception):
            self.fail(type(error).__name__)
        elif error is not None:  # its client left, or nobody needs the result any more
            self._span.set_attribute("error.type", type(error).__name__)
        self._span.end()

    def set(self, attributes: Mapping[str, AttributeValue] = {}, /, **own: AttributeValue | None) -> None:
        self._span.set_attributes(attributes)
        self._span.set_attributes({f"edgecloud.{name}": value for name, value in own.items() if value is not None})

    def fail(self, reason: str) -> None:
        self._span.set_attribute("error.type", reason)
        self._span.set_status(otel.StatusCode.ERROR)


def _parent(traceparent: str, remote: bool) -> Context:
    """The context of a new span; an empty one, in which the span begins a trace, where there is no `traceparent`."""
    if not traceparent:
        return Context()
    _, trace_id, span_id, flags = (int(part, 16) for part in traceparent.split("-"))
    parent = otel.SpanContext(trace_id, span_id, remote, otel.TraceFlags(flags))
    return otel.set_span_in_context(otel.NonRecordingSpan(parent), Context())


def _traceparent(span: otel.SpanContext) -> str:
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
