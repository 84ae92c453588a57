"""A receiver of spans for the tests of this folder, which begin outside of any trace."""

from collections.abc import Iterator

import pytest

from common.tracing.context import current_traceparent
from tests.support.otlp_receiver import Receiver, otlp_receiver


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with otlp_receiver() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        yield made


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    token = current_traceparent.set("")
    yield
    current_traceparent.reset(token)
