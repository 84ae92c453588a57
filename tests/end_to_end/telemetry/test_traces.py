"""One answer of a real edge and a real cloud is one trace, from the request to vLLM, at an OTLP receiver."""

import argparse
import os
import secrets
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import pytest_asyncio

from cli.demo import demo_servers
from tests.support.otlp_receiver import ReceivedSpan, Receiver, otlp_receiver

QUESTION = "What is a neural network?"
VOCABULARY = "GET /tokenizer"
"""Asked by the first answer, where the edge was ready before its cloud."""


class TracedPair(NamedTuple):
    edge_url: str
    cloud_url: str
    receiver: Receiver


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def traced() -> AsyncIterator[TracedPair]:
    with otlp_receiver() as receiver:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        os.environ.update(variables)
        args = argparse.Namespace(config=None, set=["cloud.model.dtype=float32", "logging.traces=true"])
        try:
            async with demo_servers(args, lambda _: None) as (edge_url, cloud_url):
                yield TracedPair(edge_url, cloud_url, receiver)
        finally:
            for name in variables:
                del os.environ[name]


async def ask(url: str, **options: Any) -> tuple[dict[str, Any], str, str]:
    """The answer, and the ids of the client's own trace and span."""
    trace, parent = secrets.token_hex(16), secrets.token_hex(8)
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 24} | options
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return await answer.json(), trace, parent


def finished(receiver: Receiver, trace: str, **last: int) -> list[ReceivedSpan]:
    """The trace's spans, once so many of each service's outermost ones have come, which end last."""

    def came(service: str) -> int:
        spans = [one for one in receiver.of(trace) if one.service == f"edgecloud-{service}" and one.kind == "server"]
        return len([one for one in spans if one.name != VOCABULARY])

    receiver.wait(lambda _: all(came(service) >= count for service, count in last.items()))
    return receiver.of(trace)


async def test_a_collaborative_answer_is_one_trace_with_a_span_for_every_round(traced: TracedPair) -> None:
    answer, trace, client = await ask(traced.edge_url, use_confidence_check=False, way="rounds")
    report = answer["collaboration"]
    spans = finished(traced.receiver, trace, edge=1, cloud=report["rounds"])
    edge = [one for one in spans if one.service == "edgecloud-edge"]
    cloud = [one for one in spans if one.service == "edgecloud-cloud"]
    by_id = {one.id: one for one in spans}

    def parents(name: str, among: list[ReceivedSpan]) -> set[str]:
        found = [one for one in among if one.name == name]
        assert found, name
        return {by_id[one.parent].name for one in found}

    (request,) = [one for one in edge if one.kind == "server"]
    (said,) = [one for one in edge if one.name.startswith("chat ")]
    assert request.parent == client and by_id[said.parent] == request
    assert parents("template", edge) == {request.name}
    rounds = [one for one in edge if one.name == "round"]
    assert len(rounds) == report["rounds"] > 1
    for name in ("draft", "verify", "commit"):
        assert parents(name, edge) == {"round"}
        assert len([one for one in edge if one.name == name]) == len(rounds)
    assert parents("POST /verify", cloud) == {"verify"} and parents("verify", cloud) == {"POST /verify"}
    assert [one.parent for one in cloud if one.name == "POST /verify"] == [
        one.id for one in edge if one.name == "verify" and one.kind == "client"
    ]
    assert said.attributes["gen_ai.operation.name"] == "chat"
    assert said.attributes["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert said.attributes["edgecloud.rounds"] == report["rounds"]
    assert sum(one.attributes["edgecloud.accepted"] for one in cloud if one.name == "verify") == report["accepted"]
    assert all(request.began <= one.began <= one.ended <= request.ended for one in edge)
    assert QUESTION not in repr(spans)


async def test_a_streamed_answer_is_one_span_on_both_sides_with_vllms_own_below_it(traced: TracedPair) -> None:
    answer, trace, _ = await ask(traced.edge_url, use_confidence_check=False, way="continuous")
    spans = finished(traced.receiver, trace, edge=1, cloud=1, vllm=1)
    (sent,) = [one for one in spans if (one.service, one.name) == ("edgecloud-edge", "stream")]
    (served,) = [one for one in spans if (one.service, one.name) == ("edgecloud-cloud", "stream")]
    (engine,) = [one for one in spans if one.service == "edgecloud-vllm"]
    assert (served.parent, engine.parent) == (sent.id, served.id)
    drafts = [one for one in spans if one.name == "draft"]
    assert drafts and {one.parent for one in drafts} == {sent.id}
    assert served.attributes["edgecloud.tokens"] == answer["usage"]["completion_tokens"]
    # The connection is kept: the next answer over it is in its own trace.
    _, trace, _ = await ask(traced.edge_url, use_confidence_check=False, way="continuous")
    spans = finished(traced.receiver, trace, edge=1, cloud=1, vllm=1)
    assert len([one for one in spans if one.name == "stream"]) == 2


async def test_a_gated_answer_shows_what_the_edge_kept(traced: TracedPair) -> None:
    answer, trace, _ = await ask(traced.edge_url, confidence_threshold=0.3, product_threshold=0.0)
    spans = finished(traced.receiver, trace, edge=1)
    kept = sum(one.attributes["edgecloud.kept"] for one in spans if one.name == "round")
    assert kept == answer["collaboration"]["tokens"]["edge"] > 0
    assert sum(one.attributes.get("edgecloud.edge", 0) for one in spans if one.name == "commit") == kept


async def test_the_clouds_own_api_passes_the_trace_on_to_vllm(traced: TracedPair) -> None:
    _, trace, client = await ask(traced.cloud_url, max_tokens=4)
    spans = finished(traced.receiver, trace, cloud=1, vllm=1)
    (request,) = [one for one in spans if one.service == "edgecloud-cloud"]
    (engine,) = [one for one in spans if one.service == "edgecloud-vllm"]
    assert (request.parent, engine.parent) == (client, request.id)


async def test_probes_are_no_spans(traced: TracedPair) -> None:
    traced.receiver.wait(lambda spans: spans)
    assert not [one.name for one in traced.receiver.spans if one.name.endswith(("/ready", "/health", "/metrics"))]
