"""Switches tracing on for a server, configured by OpenTelemetry's own environment variables."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from common.errors import StartError
from common.files.installation import CHECKOUT, install_hint
from common.tracing.spans import record_with, records

PROTOCOL = "http/protobuf"


@contextmanager
def exported(service: str, enabled: bool) -> Iterator[None]:
    """Within the block spans go to the OTLP receiver that OTEL_EXPORTER_OTLP_ENDPOINT names; not if not `enabled`."""
    if not enabled:
        yield
        return
    chosen = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if chosen not in (None, "", PROTOCOL):
        raise StartError(f"OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent over {PROTOCOL}, not {chosen}")
    try:
        from common.tracing.recorder import OpenTelemetryRecorder
    except ModuleNotFoundError as error:
        hint = "pip install --no-deps -r requirements/otel.lock" if CHECKOUT else install_hint("otel")
        raise StartError(f"logging.traces needs OpenTelemetry, which is not installed: {hint}") from error
    recorder = OpenTelemetryRecorder(service)
    record_with(recorder)
    try:
        yield
    finally:
        record_with(None)
        recorder.close()


def vllm_endpoint() -> str | None:
    """The URL to which vLLM sends its own spans; None while tracing is off."""
    if not records():
        return None
    base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or f"{base.rstrip('/')}/v1/traces"


def vllm_environment() -> Mapping[str, str]:
    """The variables that make vLLM and its processes send as this server does; none while tracing is off."""
    if not records():
        return {}
    name = os.environ.get("OTEL_SERVICE_NAME") or "edgecloud-vllm"
    return {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": PROTOCOL, "OTEL_SERVICE_NAME": name}
