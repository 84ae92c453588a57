"""Drafts pass from the web server's socket to the engine's mailboxes; neither side ever waits for the other."""

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cloud.verify.draft_channel import DraftChannel, Sender
from cloud.vllm_plugin.draft_messages import Counters, DraftMessage
from cloud.vllm_plugin.mailbox import Inbox

KEY = b"k" * 16


async def arrives(inbox: Inbox, holds: Callable[[], object]) -> None:
    """Reads messages, as the scheduler does, until the condition holds."""
    async with asyncio.timeout(10):
        while not holds():
            inbox.receive()
            await asyncio.sleep(0.001)


async def connected(sender: Sender) -> bytes:
    """The engine that has the mailbox of `sender`, once it has reported so."""
    async with asyncio.timeout(10):
        while sender.engine is None:
            await asyncio.sleep(0.001)
    return sender.engine


async def test_drafts_pass_from_a_stream_to_the_mailbox_of_its_request() -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as first, channel.sender() as second:
            first.send(3, [7])  # before the engine has the request: the newest draft is held
            first.send(4, [8, 9])
            inbox.open(first.address.key)
            inbox.open(second.address.key)
            await arrives(inbox, lambda: inbox.mailboxes.take(first.address.key, [0, 1, 2, 3]) == [8, 9])
            second.send(0, [1])
            await arrives(inbox, lambda: inbox.mailboxes.take(second.address.key, []) == [1])
            assert inbox.mailboxes.take(first.address.key, [0, 1, 2, 3]) == [8, 9]
        inbox.close()


async def test_an_engines_counts_reach_the_web_server() -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as sender:
            inbox.open(sender.address.key)
            await connected(sender)
            bad = [(100, [1]), (-1, [1]), (0, []), (0, [50]), (0, [-1])]
            for position, token_ids in bad:
                sender.send(position, token_ids)
            await arrives(inbox, lambda: channel.counters.malformed == len(bad))
            inbox.mailboxes.close(sender.address.key)
            sender.send(0, [1])
            await arrives(inbox, lambda: channel.counters == Counters(malformed=len(bad), foreign=1))
        inbox.close()


@pytest.mark.parametrize(
    "message", [b"", b"\xc1", b"\x90" * 9, msgspec.msgpack.encode(DraftMessage(KEY, 0, [1])) + b"x"]
)
async def test_bytes_that_are_no_draft_are_counted_as_malformed(message: bytes) -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as sender:
            inbox.open(sender.address.key)
            channel.forward(await connected(sender), message)
            await arrives(inbox, lambda: inbox.mailboxes.counters.malformed)
            assert inbox.mailboxes.counters == Counters(malformed=1)
        inbox.close()


async def test_an_engine_that_does_not_read_delays_nobody() -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as sender:
            inbox.open(sender.address.key)
            async with asyncio.timeout(60):
                while not channel.counters.full:
                    for _ in range(1000):
                        sender.send(0, [1])
                    await asyncio.sleep(0)
            await arrives(inbox, lambda: inbox.mailboxes.take(sender.address.key, []))
        inbox.close()


async def test_only_the_drafts_of_a_lost_engine_are_lost() -> None:
    async with DraftChannel() as channel:
        inbox = Inbox(channel.address, max_position=100, vocab_size=50)
        with channel.sender() as sender:
            inbox.open(sender.address.key)
            await connected(sender)
            inbox.close()
            async with asyncio.timeout(10):
                while not channel.counters.foreign:
                    sender.send(0, [1])
                    await asyncio.sleep(0.001)


async def test_only_this_user_can_reach_the_socket() -> None:
    async with DraftChannel() as channel:
        path = Path(channel.address.removeprefix("ipc://"))
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()


async def test_an_inbox_without_a_web_server_does_not_wait() -> None:
    inbox = Inbox("ipc:///nowhere/at/all", max_position=100, vocab_size=50)
    for n in range(5000):
        inbox.open(n.to_bytes(2, "little"))
        inbox.receive()
    assert len(inbox.mailboxes) > 1000
    inbox.close()
