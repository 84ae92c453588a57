"""The choice of a cloud by affinity, load and health, as a pure function and over real ports; protocol checks."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from aiohttp import WSMessage, web

from benchmarks.fake_cloud import FakeCloud, serving
from cli.demo import free_ports
from common import config
from common.cloud_client.pool import AFFINITY_TOKENS, CallOutcome, CloudPool, choose
from common.config_schema import BreakerConfig, CommunicationConfig, HttpClientConfig
from common.errors import ConfigError, EndpointError, RequestError
from common.http.client import HTTPClient
from common.http.error_replies import Busy, WrongProtocol
from common.http.websocket import open_websocket
from common.http_server import HTTPServer, make_app
from common.protocol import codec

URLS = [f"http://cloud-{number}:8081" for number in range(4)]
IDLE = dict.fromkeys(URLS, 0)


def prompts(count: int) -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(4096) for _ in range(80)] for _ in range(count)]


# The choice


def test_a_beginning_always_goes_to_the_same_cloud_whatever_follows_it() -> None:
    for prompt in prompts(50):
        beginning = prompt[:AFFINITY_TOKENS]
        assert len({choose(beginning + more, IDLE) for more in ([], [1], [2, 3], prompt)}) == 1
        assert choose(prompt, dict(reversed(IDLE.items()))) == choose(prompt, IDLE), "in whatever order they are named"


def test_beginnings_are_spread_over_all_clouds() -> None:
    found = Counter(choose(prompt, IDLE) for prompt in prompts(2000))
    assert set(found) == set(URLS)
    assert max(found.values()) < 1.3 * min(found.values())


def test_a_cloud_that_goes_moves_only_its_own_prompts() -> None:
    rest = dict.fromkeys(URLS[1:], 0)
    moved = Counter[str]()
    for prompt in prompts(500):
        before, after = choose(prompt, IDLE), choose(prompt, rest)
        if before in rest:
            assert after == before
        else:
            moved[after] += 1
    assert set(moved) == set(rest), "and spreads those over all that are left"


def test_load_goes_before_affinity_and_no_cloud_is_far_above_its_share() -> None:
    favourite = choose([7] * 64, IDLE)
    assert choose([7] * 64, IDLE | {favourite: 5}) != favourite
    loads = dict(IDLE)
    for taken in range(1, 200):
        loads[choose([7] * 64, loads)] += 1  # all of one beginning: affinity alone would send them to one cloud
        assert max(loads.values()) <= 1.25 * taken / len(loads) + 1
    assert choose([7] * 64, {favourite: 1000}) == favourite, "one cloud is better than none"


# Clouds


def clouds_of(*urls: str, failures: int = 1, probe_seconds: float = 60.0, **http: object) -> CloudPool:
    return CloudPool(
        CommunicationConfig(
            cloud_endpoint=urls[0],
            cloud_endpoints=list(urls[1:]),
            breaker=BreakerConfig(failures=failures, probe_seconds=probe_seconds),
            http_client=HttpClientConfig(**http),  # type: ignore[arg-type]
        )
    )


def fail(clouds: CloudPool, url: str) -> None:
    (cloud,) = (cloud for cloud in clouds if cloud.url == url)
    with pytest.raises(EndpointError), clouds.track_call(cloud):
        raise EndpointError(f"{url} is lost")


async def test_a_lost_cloud_and_an_excluded_one_are_not_picked() -> None:
    async with clouds_of(*URLS) as clouds:
        left = set(URLS)
        while len(left) > 1:
            picked = clouds.pick([1, 2, 3])
            assert picked.url in left
            left.remove(picked.url)
            fail(clouds, picked.url)
        (last,) = (cloud for cloud in clouds if cloud.url in left)
        assert clouds.pick([1, 2, 3]) is last
        with pytest.raises(EndpointError):
            clouds.pick([1, 2, 3], excluding=[last])


async def test_when_all_are_lost_the_pick_fails_at_once_and_says_why() -> None:
    async with clouds_of(*URLS[:2]) as clouds:
        for url in URLS[:2]:
            fail(clouds, url)
        with pytest.raises(EndpointError, match="cloud-0:8081 is lost; http://cloud-1:8081 is lost"):
            clouds.pick([1])


async def test_load_is_counted_while_a_call_lasts_and_its_end_by_kind() -> None:
    async with clouds_of(URLS[0], failures=1) as clouds:
        (cloud,) = clouds
        for error, outcome in [
            (None, CallOutcome.OK),
            (RequestError("wrong"), CallOutcome.REFUSED),
            (Busy("full"), CallOutcome.BUSY),
            (asyncio.CancelledError(), CallOutcome.CANCELLED),
        ]:
            with suppress(RequestError, Busy, asyncio.CancelledError), clouds.track_call(cloud):
                assert cloud.in_flight == 1
                if error:
                    raise error
            assert cloud.in_flight == 0
            assert cloud.outcomes[outcome] == 1
            assert cloud.breaker.closed, "none of these says that the cloud is lost"
        fail(clouds, cloud.url)
        assert not cloud.breaker.closed


@pytest.fixture
async def fake() -> AsyncIterator[FakeCloud]:
    async with serving() as made:
        yield made


async def test_a_cloud_that_comes_back_is_asked_again_by_itself(fake: FakeCloud) -> None:
    async with clouds_of(fake.url, probe_seconds=0.05) as clouds, asyncio.timeout(10):
        (cloud,) = clouds
        fake.ready = False
        fail(clouds, fake.url)
        while fake.probes < 3:
            assert not cloud.breaker.closed
            await asyncio.sleep(0.01)
        fake.ready = True
        while not cloud.breaker.closed:
            await asyncio.sleep(0.01)
        assert clouds.pick([1]) is cloud
        fail(clouds, fake.url)
        while not cloud.breaker.closed:
            await asyncio.sleep(0.01)
        assert cloud.breaker.openings == 2


async def test_only_a_cloud_that_has_answered_before_is_said_to_be_ready_again(
    fake: FakeCloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "common.cloud_client.pool")
    async with clouds_of(fake.url, probe_seconds=0.05) as clouds, asyncio.timeout(10):
        (cloud,) = clouds
        for _ in range(2):
            fail(clouds, fake.url)
            while not cloud.breaker.closed or cloud.breaker_opened.is_set():
                await asyncio.sleep(0.01)
            with clouds.track_call(cloud):
                pass
    ready = [(record.levelname, record.message) for record in caplog.records if "ready" in record.message]
    assert ready == [("INFO", f"{fake.url} is ready"), ("WARNING", f"{fake.url} is ready again")]


async def test_a_cloud_that_has_not_started_yet_is_no_reason_for_a_warning(
    fake: FakeCloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "common.cloud_client.pool")
    (port,) = free_ports(1)
    for url, answered, said in [
        (f"http://127.0.0.1:{port}", False, ("INFO", "does not answer yet, and gets no calls until it is ready")),
        ("http://no-such-host.invalid", False, ("WARNING", "it gets no calls until a probe succeeds")),
        (f"http://127.0.0.1:{port}", True, ("WARNING", "is that server running?; it gets no calls until a probe")),
    ]:
        caplog.clear()
        async with clouds_of(url, max_retries=0) as clouds:
            (cloud,) = clouds
            if answered:
                with clouds.track_call(cloud):
                    pass
            for _ in range(3):
                with suppress(EndpointError):
                    await clouds.get("/ready", dict)
        (record,) = caplog.records
        assert record.levelname == said[0] and said[1] in record.message


async def test_a_cloud_that_is_well_is_not_probed(fake: FakeCloud) -> None:
    async with clouds_of(fake.url, probe_seconds=0.05):
        await asyncio.sleep(0.2)
    assert fake.probes == 0


# The protocol


async def test_a_cloud_of_another_version_ends_the_start_with_the_key_that_names_it(
    fake: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as good:
        async with clouds_of(good.url, fake.url) as clouds:
            await clouds.check_protocols()
        fake.protocol = "7"
        async with clouds_of(good.url, fake.url) as clouds:
            with pytest.raises(ConfigError, match=r"^communication\.cloud_endpoints\[0\]: .* speaks protocol '7'") as e:
                await clouds.check_protocols()
    assert "\n" not in e.value.message
    assert codec.PROTOCOL in e.value.message


async def test_a_server_of_another_project_is_recognized() -> None:
    async def ready(request: web.Request) -> web.Response:
        return web.json_response({"status": "ready"})

    app = web.Application()
    app.router.add_get("/ready", ready)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with clouds_of(url) as clouds:
        with pytest.raises(ConfigError, match=r"^communication\.cloud_endpoint: .* is no server of this project"):
            await clouds.check_protocols()
    await runner.cleanup()


async def test_a_cloud_that_is_not_up_yet_does_not_keep_the_edge_from_starting(fake: FakeCloud) -> None:
    async with clouds_of("http://127.0.0.1:9", fake.url) as clouds:
        fake.ready = False
        await clouds.check_protocols()
        assert all(cloud.breaker.closed for cloud in clouds)


async def test_a_cloud_that_changes_its_version_on_the_way_is_noticed_by_its_answer(fake: FakeCloud) -> None:
    async with clouds_of(fake.url) as clouds:
        (cloud,) = clouds
        fake.protocol = "99"
        with pytest.raises(WrongProtocol, match="speaks protocol '99'"):
            await cloud.client.get("/ready", dict)


@pytest.mark.parametrize("spoken", [(), ("edgecloud.0",)])
async def test_a_stream_to_another_version_is_not_begun(spoken: tuple[str, ...], fake: FakeCloud) -> None:
    async def stream(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=spoken)
        await socket.prepare(request)
        received.extend([message async for message in socket])
        return socket

    received: list[WSMessage] = []
    app = make_app()
    app.router.add_get("/stream", stream)
    server = HTTPServer(app, "127.0.0.1", 0, drain_seconds=0)
    await server.start()
    async with HTTPClient(f"http://127.0.0.1:{server.port}") as client:
        with pytest.raises(WrongProtocol, match=f"does not speak {codec.SUBPROTOCOL}"):
            await open_websocket(client, "/stream")
    await server.stop()
    assert not received
    async with HTTPClient(fake.url) as client:
        await (await open_websocket(client, "/stream")).close()


# The config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("communication.cloud_endpoint", "localhost:8081"),
        ("communication.cloud_endpoint", "ftp://cloud"),
        ("communication.cloud_endpoint", "''"),
        ("communication.cloud_endpoint", "http://"),
        ("communication.cloud_endpoint", "http://cloud:99999"),
        ("communication.cloud_endpoint", "http://cloud:port"),
        ("communication.cloud_endpoint", "http://[::1"),
        ("communication.cloud_endpoint", "http://cloud/?a=1"),
        ("communication.edge_endpoint", "edge"),
        ("communication.cloud_endpoints[1]", "[http://a, nonsense]"),
        ("communication.cloud_endpoints[0]", "['http://localhost:8081/']"),
        ("inference.private_patterns[1]", "['fine', '(']"),
    ],
)
def test_what_is_no_url_and_no_pattern_is_named_by_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(flags=[f"{key.partition('[')[0]}={value}"], environment={})
    assert error.value.message.startswith(key + ": ")
    assert "\n" not in error.value.message


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"^communication\.cloud_endpoint: a user or password") as error:
        config.load(flags=["communication.cloud_endpoint=http://me:sesame@cloud:1"], environment={})
    assert "sesame" not in error.value.message
