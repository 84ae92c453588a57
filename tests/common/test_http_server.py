"""One server process on a real port: API keys, CORS, metrics, request logs and traces."""

import asyncio
import re
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from common import config
from common.config_schema import HttpClientConfig
from common.config_values import Secret
from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from common.http.messages import reply
from common.http_server import HTTPServer, make_app
from common.protocol import codec
from common.protocol.stream_frames import StartFrame
from tests.support.small_server import SmallServer, small_server

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
        yield session


# --- keys


async def test_without_a_key_only_the_probes_answer(client: aiohttp.ClientSession) -> None:
    async with small_server(api_keys=["sesame", "open"], cors_origins=["https://page.example"]) as server:
        for path, status in (("/health", 200), ("/ready", 200), ("/metrics", 401), ("/tenant", 401), ("/no", 401)):
            async with client.get(server.url + path) as answer:
                assert answer.status == status, path
            async with client.head(server.url + path) as answer:
                assert answer.status == status, f"HEAD {path}"
        for shown in ("Bearer wrong", "Bearer ", "Bearer", "sesame", "Basic sesame", "Bearer sesam", "Bearer sésame"):
            async with client.get(server.url + "/tenant", headers={"Authorization": shown}) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"], error["type"]) == (
                    401,
                    "invalid_api_key",
                    "invalid_request_error",
                )
                assert "sesam" not in error["message"]
        for headers in (
            {"X-Api-Key": "sesam"},
            {"X-Api-Key": ""},
            {"X-Api-Key": "sesame", "Authorization": "Bearer x"},
        ):
            async with client.get(server.url + "/tenant", headers=headers) as answer:
                assert answer.status == 401
        server.signal()
        _, log = await server.ended()
        assert "sesam" not in log


async def test_each_key_is_a_tenant_of_its_own_whose_name_does_not_show_the_key(client: aiohttp.ClientSession) -> None:
    async def tenant(server: SmallServer, key: str) -> str:
        names = set[str]()
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-Api-Key": key}):
            async with client.get(server.url + "/tenant", headers=headers) as answer:
                names.add((await answer.json())["tenant"])
        (name,) = names
        return name

    async with small_server(api_keys=["sesame", "open"]) as server, small_server(api_keys=["sesame"]) as other:
        one, two = await tenant(server, "sesame"), await tenant(server, "open")
        assert one != two
        assert re.fullmatch("[0-9a-f]{16}", one)
        assert await tenant(other, "sesame") == one
    async with small_server() as without_keys:
        assert await tenant(without_keys, "any") == ""


async def test_a_browsers_preflight_needs_no_key_and_is_for_known_origins_only(client: aiohttp.ClientSession) -> None:
    wanted = "authorization, content-type, x-stainless-lang, x-stainless-retry-count"  # as OpenAI's own client sends
    headers = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
        "Origin": "https://page.example",
    }
    async with small_server(api_keys=["sesame"], cors_origins=["https://page.example"]) as server:
        async with client.options(server.url + "/typed", headers=headers) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
            assert answer.headers["Access-Control-Allow-Headers"] == wanted
            assert set(answer.headers.getall("Vary")) == {"Origin", "Access-Control-Request-Headers"}
        async with client.get(server.url + "/tenant", headers=headers) as answer:  # a page may read its refusal
            assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
        async with client.options(server.url + "/typed", headers={**headers, "Origin": "https://evil"}) as answer:
            assert answer.status == 401
            assert not any(name.startswith("Access-Control") for name in answer.headers)


async def test_any_origin_means_any_even_one_that_is_no_text() -> None:
    async with small_server(cors_origins=["*"]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nOrigin: \xff\xfe\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"Access-Control-Allow-Origin: *\r\n" in answer


async def test_our_client_shows_its_key() -> None:
    async with small_server(api_keys=["sesame"]) as server:
        async with HTTPClient(server.url, HttpClientConfig(optimized=False), Secret("sesame")) as client:
            assert (await client.get("/tenant", dict))["tenant"]
        async with HTTPClient(server.url, HttpClientConfig(), Secret("wrong")) as client:
            assert await client.healthy()
            with pytest.raises(EndpointError, match="401"):
                await client.get("/tenant", dict)


def test_keys_are_shown_nowhere() -> None:
    environment = {
        "EDGECLOUD_COMMUNICATION__CLOUD_API_KEY": "sesame",
        "EDGECLOUD_EDGE__SERVER__API_KEYS": "[sesame-2, sesame-3]",
    }
    loaded = config.load(environment=environment)
    assert loaded.communication.cloud_api_key.reveal() == "sesame"
    assert [key.reveal() for key in loaded.edge.server.api_keys] == ["sesame-2", "sesame-3"]
    assert "sesame" not in repr(loaded)
    assert "sesame" not in config.show(loaded)
    assert "sesame" not in str(loaded.communication.cloud_api_key)
    with pytest.raises(config.ConfigError) as failure:
        config.load(environment={"EDGECLOUD_COMMUNICATION__CLOUD_API_KEY": "[sesame"})
    assert "sesame" not in failure.value.message
    with pytest.raises(config.ConfigError, match=r"communication\.cloud_api_key: expected `str`, got `int`"):
        config.load(environment={"EDGECLOUD_COMMUNICATION__CLOUD_API_KEY": "77"})


# --- metrics


async def _scrape(client: aiohttp.ClientSession, url: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples of our own metrics: (name, label values in the order of their names) -> value."""
    async with client.get(url + "/metrics") as answer:
        text = await answer.text()
    return {
        (sample.name, tuple(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("edgecloud_")
    }


async def _until_in_flight(
    client: aiohttp.ClientSession, url: str, requests: int
) -> dict[tuple[str, tuple[str, ...]], float]:
    """The first scrape that counts so many requests in flight, itself included."""
    async with asyncio.timeout(30):
        while (found := await _scrape(client, url))["edgecloud_http_requests_in_flight", ()] != requests:
            await asyncio.sleep(0.02)
    return found


async def test_metrics_can_be_asked_for_by_name(client: aiohttp.ClientSession) -> None:
    async with small_server() as server:
        await client.post(server.url + "/typed", json={})
        names = {"name[]": ["edgecloud_http_requests_total", "edgecloud_http_request_seconds_sum", "no_such"]}
        async with client.get(server.url + "/metrics", params=names) as answer:
            text = await answer.text()
    samples = [line.partition("{")[0] for line in text.splitlines() if not line.startswith("#")]
    assert set(samples) == {"edgecloud_http_requests_total", "edgecloud_http_request_seconds_sum"}


async def test_requests_are_counted_by_route_and_outcome(client: aiohttp.ClientSession) -> None:
    async with small_server() as server:
        await client.post(server.url + "/typed", json={"text": "x"})
        await client.post(server.url + "/typed", json={"text": 3})
        await client.get(server.url + "/overloaded")
        await client.get(server.url + "/broken")
        left = asyncio.create_task(client.get(server.url + "/wait/30"))
        await _until_in_flight(client, server.url, 2)
        left.cancel()
        async with client.get(server.url + "/events/0") as answer:
            streamed = len(await answer.read())
        await _until_in_flight(client, server.url, 1)
        asked = asyncio.create_task(client.get(server.url + "/wait/30"))
        found = await _until_in_flight(client, server.url, 2)  # the waiting one, and the scrape itself
        asked.cancel()
    count = "edgecloud_http_requests_total"
    assert found[count, ("ok", "/typed")] == found[count, ("refused", "/typed")] == 1
    assert found[count, ("overloaded", "/overloaded")] == 1
    assert found[count, ("failed", "/broken")] == 1
    assert found[count, ("cancelled", "/wait/{seconds}")] == 1
    assert found["edgecloud_http_bytes_in_total", ("/typed",)] == len('{"text": "x"}') + len('{"text": 3}')
    assert found["edgecloud_http_bytes_out_total", ("/events/{seconds}",)] == streamed
    assert found["edgecloud_http_request_seconds_count", ("/typed",)] == 2
    assert found["edgecloud_time_to_first_byte_seconds_count", ("/events/{seconds}",)] == 1


async def test_no_label_holds_what_a_client_wrote(client: aiohttp.ClientSession) -> None:
    async with small_server() as server:
        for at in range(50):
            headers = {"X-Request-Id": f"hostile-{at}", "traceparent": f"hostile-{at}", "Origin": f"hostile-{at}"}
            async with client.get(f"{server.url}/hostile-{at}", headers=headers) as answer:
                assert answer.status == 404
            await client.get(f"{server.url}/tenant?hostile-{at}", headers=headers)
            await client.request(f"HOSTILE{at}", server.url + "/typed")
            await client.post(server.url + "/typed", json={"text": f"hostile-{at}", f"hostile-{at}": 1})
        found = await _scrape(client, server.url)
    assert not [labels for _, labels in found if any("hostile" in label.lower() for label in labels)]
    routes = {labels[-1] for name, labels in found if name == "edgecloud_http_requests_total"}
    assert routes == {"other", "/tenant", "/typed"}
    assert found["edgecloud_http_requests_total", ("refused", "other")] == 50  # an unknown method is no HTTP


async def test_the_page_also_shows_what_libraries_count(client: aiohttp.ClientSession) -> None:
    async with small_server() as server, client.get(server.url + "/metrics") as answer:
        assert "process_resident_memory_bytes" in await answer.text()
        assert answer.content_type == "text/plain"


# --- logs and traces


async def test_each_request_is_one_line_in_the_log_without_its_content(client: aiohttp.ClientSession) -> None:
    async with small_server() as server:
        headers = {"X-Request-Id": "mine", "traceparent": TRACE}
        async with client.post(server.url + "/typed?query", data=b'{"text":"prompt"}', headers=headers) as answer:
            assert answer.headers["X-Request-Id"] == "mine"
        await client.post(server.url + "/typed", json={"prompt": "prompt"}, headers={"X-Request-Id": "second"})
        await client.get(server.url + "/prompt")
        await client.get(server.url + "/health")
        server.signal()
        _, log = await server.ended()
    lines = [line for line in log.splitlines() if "bytes in" in line]
    assert len(lines) == 3
    assert re.search(
        rf"POST /typed 200 ok [\d.]+ ms, 17 bytes in, \d+ out, request mine, trace_id={TRACE[3:35]}$", lines[0]
    )
    assert re.search(r"POST /typed 400 refused .* request second$", lines[1])
    assert "prompt" not in log
    assert "query" not in log


async def test_no_request_id_writes_fields_or_lines_of_the_log(client: aiohttp.ClientSession) -> None:
    forged = ["mine, trace_id=forged", "mine\ttrace", "mine\u00a0trace", "x" * 129, "\u200b"]
    async with small_server() as server:
        for given in forged:
            async with client.post(server.url + "/typed", json={}, headers={"X-Request-Id": given}) as answer:
                assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])
        server.signal()
        _, log = await server.ended()
    lines = [line for line in log.splitlines() if "bytes in" in line]
    assert len(lines) == len(forged)
    assert all(re.search(r"request [0-9a-f]{32}$", line) for line in lines)
    for given in [*forged, "two\nlines", "one\n"]:
        with pytest.raises(RequestError) as refusal:
            codec.decode(msgspec.json.encode({"type": "start", **START, "request_id": given}), StartFrame)
        assert refusal.value.param == "request_id"


START = {"token_ids": [1], "max_tokens": 1}


async def test_a_traceparent_that_is_none_is_not_taken_over(client: aiohttp.ClientSession) -> None:
    given = [
        "",
        "ff" + TRACE[2:],
        TRACE.upper(),
        TRACE + "-more",
        "00-" + "0" * 32 + TRACE[35:],
        TRACE[:36] + "0" * 16 + "-01",
        TRACE[:-1],
        "hostile",
    ]
    async with small_server() as server:
        for value in given:
            await client.get(server.url + "/tenant", headers={"traceparent": value})
        await client.get(server.url + "/tenant", headers=[("traceparent", TRACE), ("traceparent", TRACE)])
        server.signal()
        _, log = await server.ended()
    lines = [line for line in log.splitlines() if "bytes in" in line]
    assert len(lines) == len(given) + 1
    assert all(re.search(r"request [0-9a-f]{32}$", line) for line in lines)


async def test_our_client_passes_the_trace_on(client: aiohttp.ClientSession) -> None:
    async with small_server() as cloud:

        async def relay(request: web.Request) -> web.Response:
            async with HTTPClient(cloud.url) as onward:
                return reply(request, await onward.get("/tenant", dict))

        app = make_app()
        app.router.add_get("/relay", relay)
        edge = HTTPServer(app, "127.0.0.1", 0)
        await edge.start()
        await client.get(f"http://127.0.0.1:{edge.port}/relay", headers={"traceparent": TRACE, "X-Request-Id": "mine"})
        await edge.stop()
        cloud.signal()
        assert f"request mine, trace_id={TRACE[3:35]}" in (await cloud.ended())[1]


async def test_a_client_that_leaves_frees_its_request_at_once(client: aiohttp.ClientSession) -> None:
    async with small_server() as server:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await client.get(server.url + "/wait/3600", timeout=aiohttp.ClientTimeout(0.1))
        async with asyncio.timeout(10):
            while (await _scrape(client, server.url))["edgecloud_http_requests_in_flight", ()] > 1:
                await asyncio.sleep(0.05)
