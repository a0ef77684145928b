"""The messages of the WAL stream, byte by byte, and the rule that it has no gap."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest

from pitr.errors import ServerUnavailable
from pitr.postgres.receiver import Contiguous, Keepalive, WalMessage, decode_message, encode_status
from pitr.wal.lsn import LSN


def wal_message(start: int, content: bytes) -> memoryview:
    return memoryview(b"w" + struct.pack("!QQq", start, start + 4096, 0) + content)


def test_a_wal_message_has_its_place_and_the_servers_end() -> None:
    assert decode_message(wal_message(0x1000000, b"wal")) == WalMessage(
        LSN(0x1000000), LSN(0x1001000), memoryview(b"wal")
    )


def test_a_keepalive_may_want_a_reply() -> None:
    message = memoryview(b"k" + struct.pack("!QqB", 0x1001000, 0, 1))
    assert decode_message(message) == Keepalive(LSN(0x1001000), wants_reply=True)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"x",
        b"w",
        b"w" + bytes(24),
        b"w" + bytes(25),
        b"k" + bytes(17),
        b"k" + bytes(16),
        b"k" + bytes(18),
    ],
)
def test_what_no_server_sends_ends_the_connection(message: bytes) -> None:
    with pytest.raises(ServerUnavailable):
        decode_message(memoryview(message))


def test_a_status_says_written_flushed_and_never_applied() -> None:
    at = datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC)
    status = encode_status(LSN(3), LSN(2), now=at, wants_reply=True)
    assert status == b"r" + struct.pack("!QQQqB", 3, 2, 0, 1_000_000, 1)
    assert encode_status(None, None, now=at, wants_reply=False)[1:25] == bytes(24)


@pytest.mark.parametrize("start", [0x0FFFFFF, 0x1000002])
def test_a_stream_that_overlaps_or_jumps_is_refused(start: int) -> None:
    stream = Contiguous(LSN(0x1000000))
    stream.accept(WalMessage(LSN(0x1000000), LSN(0x1001000), memoryview(b"a")))
    assert stream.next == LSN(0x1000001)
    with pytest.raises(ServerUnavailable, match="does not join"):
        stream.accept(WalMessage(LSN(start), LSN(0x1001000), memoryview(b"b")))
