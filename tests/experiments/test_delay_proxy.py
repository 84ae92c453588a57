"""The simulated network: bytes arrive unchanged after the delay; stalls hold them back, cuts end connections."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from experiments.harness.delay_proxy import DelayProxy


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def far() -> AsyncIterator[int]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def seconds_for(proxy: DelayProxy, data: bytes) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    began = time.perf_counter()
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    writer.close()
    return time.perf_counter() - began


async def test_bytes_arrive_complete_and_in_order_after_the_delay(far: int) -> None:
    async with DelayProxy("127.0.0.1", far, delay=0.02) as proxy:
        assert await seconds_for(proxy, bytes(range(256)) * 4096) >= 2 * 0.02
        assert proxy.connections == 1


async def test_bandwidth_limits_the_bytes_per_second(far: int) -> None:
    async with DelayProxy("127.0.0.1", far, bandwidth=1e6) as proxy:
        assert await seconds_for(proxy, b"x" * 200_000) >= 0.2


async def test_connections_share_one_line(far: int) -> None:
    async with DelayProxy("127.0.0.1", far, bandwidth=1e6) as proxy:
        began = time.perf_counter()
        await asyncio.gather(*(seconds_for(proxy, b"x" * 50_000) for _ in range(4)))
        assert time.perf_counter() - began >= 0.2
        assert proxy.up.bytes == proxy.down.bytes == 200_000


async def test_a_new_connection_costs_a_round_trip_more(far: int) -> None:
    async with DelayProxy("127.0.0.1", far, delay=0.02) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        began = time.perf_counter()
        writer.write(b"x")
        await reader.readexactly(1)
        assert time.perf_counter() - began >= 4 * 0.02
        writer.close()


async def test_many_messages_are_in_flight_at_once(far: int) -> None:
    # One after the other, they would take 40 delays.
    async with DelayProxy("127.0.0.1", far, delay=0.25) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        began = time.perf_counter()
        for n in range(40):
            writer.write(bytes([n]))
            await asyncio.sleep(0.001)
        assert await reader.readexactly(40) == bytes(range(40))
        assert time.perf_counter() - began < 36 * 0.25
        writer.close()


async def test_a_stall_holds_everything_back_until_it_ends(far: int) -> None:
    async with DelayProxy("127.0.0.1", far) as proxy:
        proxy.stall()
        waiting = asyncio.create_task(seconds_for(proxy, b"x"))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        proxy.flow()
        async with asyncio.timeout(10):
            await waiting


async def test_a_cut_ends_open_connections_and_new_ones_are_accepted(far: int) -> None:
    async with DelayProxy("127.0.0.1", far) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x")
        await reader.readexactly(1)
        await proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        await seconds_for(proxy, b"y")


async def test_the_end_of_the_stream_passes(far: int) -> None:
    async with DelayProxy("127.0.0.1", far, delay=0.01) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"last")
        writer.write_eof()
        assert await reader.read() == b"last"
        writer.close()
