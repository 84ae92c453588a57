"""The spans of a cloud server on a toy engine: below the edge's own, above vLLM's."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from cloud.engine import args as engine_args
from cloud.engine.base import VLLMEngine
from common.cloud_client.pool import CloudPool
from common.cloud_client.verifier import CloudVerifier
from common.config_schema import CommunicationConfig
from common.tracing.context import current_traceparent
from common.tracing.export import exported
from common.tracing.spans import span
from common.types import GREEDY
from tests.cloud.toy_engine import ToyEngine, toy_cloud
from tests.conftest import CLOUD_MODEL
from tests.support.otlp_receiver import ReceivedSpan, Receiver, otlp_receiver


class WatchedEngine(ToyEngine):
    """Notes the trace context in which vLLM would be called."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[str] = []
        self.serving = SimpleNamespace(openai_serving_chat=SimpleNamespace(create_chat_completion=self._chat))

    async def generate(
        self, prompt: list[int], params: SamplingParams, *others: object
    ) -> AsyncGenerator[SimpleNamespace, None]:
        self.contexts.append(current_traceparent.get())
        async for output in super().generate(prompt, params, *others):
            yield output

    async def _chat(self, body: Any, request: Any) -> None:
        self.contexts.append(request.headers["traceparent"] if request else "")
        raise ValueError("that is all")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with otlp_receiver() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        yield made


@asynccontextmanager
async def verifier_of(engine: ToyEngine) -> AsyncIterator[CloudVerifier]:
    async with toy_cloud(engine) as http:
        config = CommunicationConfig(cloud_endpoint=str(http._base_url).rstrip("/"))
        async with CloudPool(config) as clouds:
            yield CloudVerifier(clouds)


def path(of: ReceivedSpan, spans: list[ReceivedSpan]) -> list[str]:
    """The span's name and those of all above it."""
    above = [one for one in spans if one.id == of.parent]
    return [of.name, *(path(above[0], spans) if above else [])]


async def test_a_verify_is_a_span_below_the_edges_and_the_parent_of_what_vllm_does(receiver: Receiver) -> None:
    engine = WatchedEngine()
    with exported("both", enabled=True):
        async with verifier_of(engine) as verifier:
            with span("round"):
                verdict = await verifier.verify([5, 6, 7], [9, 9], GREEDY, 1)
    (inner,) = [one for one in receiver.spans if path(one, receiver.spans)[1:] == ["POST /verify", "verify", "round"]]
    assert inner.name == "verify" and engine.contexts[-1][36:52] == inner.id
    assert inner.attributes["edgecloud.form"] == "stateless" and inner.attributes["edgecloud.drafted"] == 2
    assert inner.attributes["edgecloud.accepted"] == verdict.accepted


async def test_each_answer_over_a_kept_connection_is_in_the_trace_of_its_own_request(receiver: Receiver) -> None:
    engine = WatchedEngine()
    with exported("both", enabled=True):
        async with verifier_of(engine) as verifier:
            for number in range(2):
                with span(f"answer {number}"):
                    async with verifier.stream([5, 6, 7], 8) as stream:
                        frames = [frame async for frame in stream]
                    assert frames and bool(stream.handshake_seconds) is (number == 0)
    served = [one for one in receiver.spans if (one.name, one.kind) == ("stream", "server")]
    paths = [path(one, receiver.spans) for one in served]
    assert paths == [["stream", "stream", f"answer {number}"] for number in range(2)]
    assert [context[36:52] for context in engine.contexts[-2:]] == [one.id for one in served]
    assert {one.attributes["edgecloud.tokens"] for one in served} == {sum(len(frame.token_ids) for frame in frames)}


async def test_vllms_own_api_gets_the_context_of_the_servers_span(receiver: Receiver) -> None:
    engine, body = WatchedEngine(), {"messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
    with exported("cloud", enabled=True):
        async with toy_cloud(engine) as http:
            assert (await http.post("/v1/chat/completions", json=body)).status == 400
    (request,) = [one for one in receiver.spans if one.name == "POST /v1/chat/completions"]
    assert engine.contexts[-1][36:52] == request.id
    async with toy_cloud(engine) as http:
        await http.post("/v1/chat/completions", json=body)
    assert engine.contexts[-1] == ""


@pytest.mark.parametrize("traced", [False, True])
async def test_vllm_is_given_the_parent_of_its_spans_and_where_they_go_only_while_it_traces(
    receiver: Receiver, traced: bool
) -> None:
    given: list[Any] = []

    async def generate(*arguments: object, trace_headers: object) -> AsyncGenerator[str, None]:
        given.append(trace_headers)
        yield "output"

    with exported("cloud", enabled=traced):
        engine = VLLMEngine(engine_args.parse(str(CLOUD_MODEL), 16, {}))
        endpoint = engine._engine_args().otlp_traces_endpoint
        assert endpoint == (f"{receiver.url}/v1/traces" if traced else None)
        config = SimpleNamespace(otlp_traces_endpoint=endpoint)
        engine._llm = SimpleNamespace(generate=generate, observability_config=config)
        with span("verify"):
            assert [output async for output in engine.generate([1], SamplingParams())] == ["output"]
            expected = {"traceparent": current_traceparent.get()} if traced else None
    assert given == [expected]
