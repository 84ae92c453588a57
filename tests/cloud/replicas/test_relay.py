"""Requests through the front: as they are, both ways, to the replica that suits them, else to another one."""

import asyncio
import json
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import zstandard
from yarl import URL

from benchmarks.toy_model import verify
from cloud.replicas.replica import ReplicaAddress
from cloud.replicas.request_key import key_of, key_of_start
from common.config_values import Secret
from common.http.auth import tenant_name
from common.protocol import codec
from common.protocol.prefix_hash import prefix_hash
from common.protocol.stream_frames import StartFrame
from common.types import VerifyRequest, VerifyResponse
from tests.cloud.replicas.fake_replica import QUICK, FakeReplica, RunningFront, front
from tests.cloud.test_kv_cache import store

PROMPT = list(range(5, 105))


def first_round(**fields: Any) -> VerifyRequest:
    return VerifyRequest(prefix_hash=prefix_hash([]), **fields)


async def ask(running: RunningFront, body: VerifyRequest, **headers: str) -> VerifyResponse:
    packed = codec.encode(body, codec.MSGPACK)
    async with running.http.post("/verify", data=packed, headers={"Content-Type": codec.MSGPACK, **headers}) as reply:
        assert reply.status == 200, await reply.read()
        return codec.decode(await reply.read(), VerifyResponse, codec.MSGPACK)


def asked(running: RunningFront) -> list[int]:
    return [len(fake.asked) for fake in running.fakes]


async def test_a_session_stays_with_one_replica_and_sessions_are_spread() -> None:
    async with front() as running:
        for session in map(str, range(12)):
            ids = [int(session) + 5, *PROMPT]
            await ask(running, first_round(session=session, new_token_ids=ids))
            held = ids + verify(ids, [], 1).token_ids
            await ask(running, VerifyRequest(session=session, prefix_length=len(held), prefix_hash=prefix_hash(held)))
        for fake in running.fakes:
            sessions = [round.session for round in fake.asked]
            assert sessions and all(sessions.count(session) == 2 for session in sessions)


async def test_a_prompt_goes_to_the_replica_whose_cache_holds_it_for_its_tenant() -> None:
    key = Secret("k")
    async with front(api_keys=[key]) as running:
        for holder in running.fakes:
            store(holder.cache, "0", PROMPT, 16, tenant_name(key) + "mine")
            await asyncio.sleep(0.05)
            for _ in range(4):
                round = first_round(new_token_ids=PROMPT, tenant="mine")
                await ask(running, round, Authorization="Bearer k")
            assert len(holder.asked) == 4
            chosen = {fake.name for fake in running.fakes if fake.asked}
            assert chosen == {holder.name}
            holder.asked.clear()
            holder.cache.clear("0")


async def test_a_long_text_goes_where_its_tokens_are_held() -> None:
    text = "".join(chr(97 + at % 26) for at in range(2000))
    async with front() as running:
        for holder in running.fakes:
            holder.go_on.set()
            store(holder.cache, "0", [ord(letter) for letter in text], 16)
            await asyncio.sleep(0.05)
            for _ in range(3):
                async with running.http.post("/v1/completions", json={"prompt": text}) as reply:
                    assert (await reply.json())["by"] == holder.name
            holder.cache.clear("0")


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_body_arrives_as_it_was_sent(compressed: bool) -> None:
    body = codec.encode(first_round(session="s", new_token_ids=PROMPT, draft_token_ids=[1, 2]), codec.MSGPACK)
    headers = {"Content-Type": codec.MSGPACK, **({"Content-Encoding": "zstd"} if compressed else {})}
    async with front() as running:
        data = zstandard.compress(body) if compressed else body
        async with running.http.post("/verify", data=data, headers=headers) as reply:
            verdict = codec.decode(await reply.read(), VerifyResponse, codec.MSGPACK)
        assert verdict.token_ids == verify(PROMPT, [1, 2], 1).token_ids
        (round,) = [round for fake in running.fakes for round in fake.asked]
        assert msgspec.msgpack.encode(round) == body


async def test_a_wrong_body_gets_the_replicas_own_refusal() -> None:
    async with front() as running:
        async with running.http.post("/verify", json={"new_token_ids": "x"}) as reply:
            assert reply.status == 400
            assert (await reply.json())["error"]["param"] == "new_token_ids"
        async with running.http.get("/nothing") as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1])
async def test_token_ids_of_any_size_get_a_replicas_own_answer(number: int) -> None:
    async with front() as running:
        for fake in running.fakes:
            fake.go_on.set()
        async with running.http.post("/v1/completions", json={"prompt": [5, number]}) as reply:
            assert reply.status == 200
        body = json.dumps({"requests": [{"new_token_ids": [number]}]}).encode()
        assert not key_of("/verify/batch", body, codec.JSON, "").token_ids
        assert not key_of_start(StartFrame(token_ids=[number], max_tokens=1), "").token_ids


async def test_headers_go_on_but_those_of_the_connection_and_the_page() -> None:
    async with front() as running:
        for fake in running.fakes:
            fake.go_on.set()
        headers = {"X-Request-Id": "mine", "Authorization": "Bearer abc", "Origin": running.url, "X-Own": "1"}
        async with running.http.post("/v1/completions", json={}, headers=headers) as reply:
            assert reply.headers.getall("X-Request-Id") == ["mine"]
        (sent,) = [sent for fake in running.fakes for sent in fake.sent]
        assert (sent["X-Request-Id"], sent["Authorization"], sent["X-Own"]) == ("mine", "Bearer abc", "1")
        assert "Origin" not in sent and sent["Host"] not in running.url


@pytest.mark.parametrize("target", ["http:@{host}/v1/models", "@{host}/x", "http://{host}/x", "//{host}/x"])
async def test_no_target_makes_the_front_ask_another_host(target: str) -> None:
    asked: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.transport.abort()

    async with front() as running, await asyncio.start_server(take, "127.0.0.1", 0) as other:
        line = "GET " + target.format(host=f"127.0.0.1:{other.sockets[0].getsockname()[1]}") + " HTTP/1.1\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
        writer.write(f"{line}Host: localhost\r\nConnection: close\r\n\r\n".encode())
        reply = await reader.read()
        writer.close()
    assert reply.split()[1] in (b"400", b"404")
    assert not asked


async def test_without_a_key_nothing_reaches_a_replica() -> None:
    async with front(api_keys=[Secret("k")]) as running:
        async with running.http.post("/verify", json={"new_token_ids": [5]}) as reply:
            assert reply.status == 401
        assert asked(running) == [0, 0]


async def _begun(running: RunningFront) -> FakeReplica:
    """The replica on which a request has begun."""
    waits = {asyncio.create_task(fake.begun.wait()): fake for fake in running.fakes}
    done, pending = await asyncio.wait(waits, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return waits[done.pop()]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_client_that_leaves_ends_the_replicas_work_at_once(path: str) -> None:
    async with front() as running:
        asking = asyncio.create_task(running.http.post(path, json={}))
        working = await _begun(running)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            (await asking).close()
        if path.endswith("chat/completions") and not asking.cancelled():
            asking.result().close()
        await asyncio.wait_for(working.left.wait(), 10)
        async with asyncio.timeout(10):
            while running.replica(working).in_flight:
                await asyncio.sleep(0.01)


async def test_events_come_as_they_are_made_and_end_with_the_replicas_end() -> None:
    async with front() as running, running.http.post("/v1/chat/completions", json={}) as reply:
        working = await _begun(running)
        assert await reply.content.readuntil(b"\n\n") == f"data: {working.name}\n\n".encode()
        working.go_on.set()
        assert await reply.content.read() == b"data: [DONE]\n\n"


async def test_a_request_whose_replica_is_killed_is_answered_by_another_one() -> None:
    async with front() as running:
        asking = asyncio.create_task(running.http.post("/v1/completions", json={}))
        working = await _begun(running)
        (other,) = [fake for fake in running.fakes if fake is not working]
        other.go_on.set()
        await working.kill()
        reply = await asking
        assert (reply.status, await reply.json()) == (200, {"by": other.name})
        await running.until_ready()
        assert running.replica(working).losses == 1


async def test_without_another_replica_the_client_is_told() -> None:
    """The negative control of the test above: what answers there is the second try."""
    async with front(1) as running:
        asking = asyncio.create_task(running.http.post("/v1/completions", json={}))
        working = await _begun(running)
        await working.kill()
        reply = await asking
        assert (reply.status, (await reply.json())["error"]["code"]) == (503, "engine_unavailable")


@pytest.mark.parametrize("state", ["dies", "lost_engine"])
async def test_a_request_that_ends_replicas_ends_two_of_them_and_not_all(state: str) -> None:
    async with front(4) as running:
        for fake in running.fakes:
            setattr(fake, state, True)
        async with running.http.post("/v1/completions", json={}) as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (503, "engine_unavailable")
        assert sum(one.served for one in running.fleet.replicas) == 2


async def test_replicas_that_never_got_the_request_do_not_count_as_ended_by_it() -> None:
    async with front(4) as running:
        running.fleet.timing = replace(QUICK, probe=60)
        await asyncio.sleep(0.1)  # no probe finds out before the request
        *gone, last = running.fakes
        last.go_on.set()
        for port, fake in enumerate(gone, 1):  # nobody listens there
            running.replica(fake).address = ReplicaAddress(f"http://127.0.0.1:{port}", 0)
        running.replica(last).in_flight = 1
        async with running.http.post("/v1/completions", json={}) as reply:
            assert (await reply.json())["by"] == last.name
        assert sum(one.served for one in running.fleet.replicas) == 4


async def test_events_that_break_off_end_with_an_error_event() -> None:
    async with front() as running, running.http.post("/v1/chat/completions", json={}) as reply:
        working = await _begun(running)
        await reply.content.readuntil(b"\n\n")
        await working.kill()
        rest = (await reply.content.read()).decode()
        assert json.loads(rest.removeprefix("data: "))["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize("state", ["full", "lost_engine"])
async def test_a_replica_without_room_or_engine_is_passed_over(state: str) -> None:
    async with front() as running:
        for fake in running.fakes:
            fake.go_on.set()
        setattr(running.fakes[0], state, True)
        for _ in range(6):
            async with running.http.post("/v1/completions", json={}) as reply:
                assert (await reply.json())["by"] == running.fakes[1].name


async def test_when_all_are_full_the_client_gets_the_refusal_with_its_retry_after() -> None:
    async with front() as running:
        for fake in running.fakes:
            fake.full = True
        async with running.http.post("/v1/completions", json={}) as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (429, "1")


@pytest.mark.parametrize("keys", [{}, {"Authorization": "Bearer k"}, {"X-Api-Key": "k"}])
@pytest.mark.parametrize("call", ["abc", "a/b?c=d#e%2Ff"], ids=["plain", "quoted"])
async def test_a_call_is_worked_on_as_long_as_its_replica_says_so(call: str, keys: dict[str, str]) -> None:
    async with front(api_keys=[Secret("k")] if keys else []) as running:

        async def status(call: str) -> int:
            url = URL(f"{running.url}/calls/{quote(call, safe='')}", encoded=True)
            async with running.http.get(url, headers=keys) as reply:
                return reply.status

        headers = {"X-Call-Id": call, **keys}
        asking = asyncio.create_task(running.http.post("/v1/completions", json={}, headers=headers))
        working = await _begun(running)
        assert (await status(call), await status("other")) == (200, 404)
        working.go_on.set()
        await asking
        assert await status(call) == 404


async def test_stats_and_metrics_say_what_the_replicas_say() -> None:
    async with front() as running:
        await ask(running, first_round(new_token_ids=[7]))
        async with running.http.get("/stats") as reply:
            stats = await reply.json()
        assert (stats["sessions"], stats["kv_cache"]["blocks"]) == (4, 6)
        assert {name: one["state"] for name, one in stats["replicas"].items()} == {"0": "ready", "1": "ready"}
        assert sum(one["served"] for one in stats["replicas"].values()) == 1
        async with running.http.get("/metrics") as reply:
            text = await reply.text()
        for name in ("front", "0", "1"):
            assert f'replica="{name}"' in text


async def test_the_front_is_ready_while_a_replica_is() -> None:
    async with front() as running:
        for count, fake in enumerate(running.fakes):
            fake.ready = False
            await asyncio.sleep(0.1)
            async with running.http.get("/ready") as reply:
                assert reply.status == (200 if count == 0 else 503)
        async with running.http.get("/health") as reply:
            assert reply.status == 200
