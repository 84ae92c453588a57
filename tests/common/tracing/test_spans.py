"""Spans: nothing while tracing is off; parents, failures and the trace context while it is on."""

import logging
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, http_attributes

from common.errors import StartError
from common.files.installation import PROJECT
from common.tracing.context import TracedFormatter, current_traceparent
from common.tracing.export import exported, vllm_endpoint, vllm_environment
from common.tracing.spans import NO_SPAN, SpanKind, records_content, span
from tests.support.otlp_receiver import ReceivedSpan, Receiver, otlp_receiver

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = TRACE[:-2] + "00"


def by_name(receiver: Receiver) -> dict[str, ReceivedSpan]:
    return {one.name: one for one in receiver.spans}


def test_while_tracing_is_off_a_span_is_nothing_and_the_requests_own_context_is_sent_on(receiver: Receiver) -> None:
    current_traceparent.set(TRACE)
    with exported("server", enabled=False), span("work") as traced:
        traced.set({"a": 1}, b=2)
        assert traced is NO_SPAN and current_traceparent.get() == TRACE
        assert vllm_endpoint() is None and vllm_environment() == {}
    assert receiver.spans == []


def test_an_edge_that_traces_nothing_imports_nothing_of_opentelemetry() -> None:
    code = "import sys, start_edge; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_spans_have_the_parents_that_enclose_them_and_the_first_one_that_of_the_request(receiver: Receiver) -> None:
    current_traceparent.set(TRACE)
    with exported("server", enabled=True):
        with span("request", SpanKind.SERVER):
            inside = current_traceparent.get()
            with span("draft") as traced:
                traced.set({"http.route": "/"}, tokens=3, form=None)
            with span("verify", SpanKind.CLIENT):
                pass
        assert current_traceparent.get() == TRACE
    spans = by_name(receiver)
    assert {one.trace for one in receiver.spans} == {TRACE[3:35]} and {one.service for one in receiver.spans} == {
        "server"
    }
    assert spans["request"].parent == TRACE[36:52]
    assert spans["draft"].parent == spans["verify"].parent == spans["request"].id == inside[36:52]
    assert [spans[name].kind for name in ("request", "draft", "verify")] == ["server", "internal", "client"]
    assert spans["draft"].attributes == {"http.route": "/", "edgecloud.tokens": 3}


def test_a_request_without_a_context_begins_a_trace(receiver: Receiver) -> None:
    with exported("server", enabled=True):
        for name in ("one", "two"):
            with span(name):
                pass
    assert [one.parent for one in receiver.spans] == ["", ""]
    assert len({one.trace for one in receiver.spans}) == 2


def test_a_failure_is_named_without_its_message_which_may_quote_a_prompt(receiver: Receiver) -> None:
    with exported("server", enabled=True):
        with pytest.raises(ValueError, match="secret"), span("broken"):
            raise ValueError("a secret prompt")
        with pytest.raises(KeyboardInterrupt), span("left"):
            raise KeyboardInterrupt
        with span("told") as traced:
            traced.fail("503")
    spans = by_name(receiver)
    assert {name: (one.failed, one.attributes) for name, one in spans.items()} == {
        "broken": (True, {"error.type": "ValueError"}),
        "left": (False, {"error.type": "KeyboardInterrupt"}),
        "told": (True, {"error.type": "503"}),
    }


async def test_a_span_around_a_yield_leaves_its_reader_the_context_that_it_had(receiver: Receiver) -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        for number in range(3):
            with span(f"round {number}"):
                yield number

    with exported("server", enabled=True), span("answer"):
        context = current_traceparent.get()
        async with aclosing(numbers()) as rounds:
            async for number in rounds:
                if number == 1:
                    break
        assert current_traceparent.get() == context
    spans = by_name(receiver)
    assert sorted(spans) == ["answer", "round 0", "round 1"]
    assert spans["round 0"].parent == spans["round 1"].parent == spans["answer"].id


def test_a_request_that_its_client_does_not_trace_is_not_recorded_and_that_is_sent_on(receiver: Receiver) -> None:
    current_traceparent.set(UNSAMPLED)
    with exported("server", enabled=True), span("request", SpanKind.SERVER):
        assert current_traceparent.get().startswith(UNSAMPLED[:36]) and current_traceparent.get().endswith("-00")
    assert receiver.spans == []


def test_a_log_line_names_the_trace_of_its_request() -> None:
    record = logging.LogRecord("name", logging.INFO, "", 1, "words", None, None)
    formatter = TracedFormatter("%(message)s")
    assert formatter.format(record) == "words"
    current_traceparent.set(TRACE)
    assert formatter.format(record) == f"words, trace_id={TRACE[3:35]}"


@pytest.mark.parametrize(("given", "recorded"), [(None, False), ("false", False), ("true", True)])
def test_prompts_are_recorded_only_where_the_standard_variable_says_so(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, given: str | None, recorded: bool
) -> None:
    if given is not None:
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", given)
    assert not records_content()
    with exported("server", enabled=True):
        assert records_content() is recorded


def test_vllm_sends_its_own_spans_to_the_same_receiver(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with exported("server", enabled=True):
        assert vllm_endpoint() == f"{receiver.url}/v1/traces"
        assert vllm_environment()["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://elsewhere/traces")
        assert vllm_endpoint() == "http://elsewhere/traces"


def test_a_receiver_that_is_away_costs_no_request_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as gone:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", gone.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with exported("server", enabled=True):
        for _ in range(3000):  # more than the SDK keeps
            with span("request"):
                pass
    assert gone.spans == []


def test_another_protocol_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(StartError, match="http/protobuf, not grpc"), exported("server", enabled=True):
        pass


def test_without_the_packages_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "common.tracing.recorder", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(StartError, match=r"requirements/otel\.lock"), exported("server", enabled=True):
        pass


def test_standard_names_are_those_of_the_conventions() -> None:
    sources = [path.read_text() for folder in ("common", "edge", "cloud") for path in (PROJECT / folder).rglob("*.py")]
    used = {name for text in sources for name in re.findall(r'"((?:gen_ai|http)\.[a-z_.]+)"', text)}
    modules = (gen_ai_attributes, http_attributes)
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    assert {"gen_ai.operation.name", "http.route"} <= used <= known
