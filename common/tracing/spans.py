"""Spans: what was done for a request, by whom, from when to when. While tracing is off they cost one comparison."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

AttributeValue = str | int | float | bool | Sequence[str]


class SpanKind(StrEnum):
    """Which side of a call a span is."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


class Span(Protocol):
    """Use it with `with`: within the block it is the parent of new spans and of calls to other servers.

    An exception that leaves the block is named, without its message, which may quote a prompt.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def set(self, attributes: Mapping[str, AttributeValue] = ..., /, **own: AttributeValue | None) -> None:
        """Adds attributes: those of OpenTelemetry's conventions by their names, `own` ones as `edgecloud.NAME`.

        None is left out.
        """
        ...

    def fail(self, reason: str) -> None:
        """Marks the span as failed, where no exception says so."""
        ...


class Recorder(Protocol):
    """What records spans, while tracing is on."""

    content: bool
    """Whether prompts and answers are recorded, too."""

    def span(self, name: str, kind: SpanKind) -> Span: ...


class NoSpan:
    """What `span` gives while tracing is off."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def set(self, attributes: Mapping[str, AttributeValue] = {}, /, **own: AttributeValue | None) -> None:
        pass

    def fail(self, reason: str) -> None:
        pass


NO_SPAN: Span = NoSpan()
_recorder: Recorder | None = None


def record_with(recorder: Recorder | None) -> None:
    """From now on spans are recorded with it; None: they are not."""
    global _recorder
    _recorder = recorder


def span(name: str, kind: SpanKind = SpanKind.INTERNAL) -> Span:
    """A span within the current one, or within the request's `traceparent`."""
    return NO_SPAN if _recorder is None else _recorder.span(name, kind)


def records() -> bool:
    """Whether tracing is on."""
    return _recorder is not None


def records_content() -> bool:
    """Whether spans may hold prompts and answers."""
    return _recorder is not None and _recorder.content
