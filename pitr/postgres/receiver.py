"""The stream of WAL: its messages as values, the replies to it, and the rule that it has no gap.  Sans-IO.

Bytes in, values out; the socket is ``pitr.postgres.replication``'s.

Reference: PostgreSQL manual, "Streaming Replication Protocol": XLogData, primary keepalive,
standby status update.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pitr.errors import ServerUnavailable
from pitr.wal.lsn import LSN

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_WAL = struct.Struct("!QQq")
_KEEPALIVE = struct.Struct("!QqB")
_STATUS = struct.Struct("!cQQQqB")
_WAL_HEADER_BYTES = 1 + _WAL.size
# The sender cuts at 128 KiB (MAX_SEND_SIZE); more than this is no message of it.
MESSAGE_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class WalMessage:
    """WAL from ``start`` on, and how far the server's own WAL reached when it was sent.

    ``content`` is part of the message as libpq received it, which it keeps alive: no copy is made.
    """

    start: LSN
    server_end: LSN
    content: memoryview


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server is alive, its WAL reaches to ``server_end``, and it may want an answer at once."""

    server_end: LSN
    wants_reply: bool


def decode_message(message: memoryview) -> WalMessage | Keepalive:
    """Read one message.  Raises ServerUnavailable for what no server sends: the stream is broken."""
    kind = bytes(message[:1])
    try:
        if kind == b"w" and _WAL_HEADER_BYTES < len(message) <= MESSAGE_BYTES_MAX:
            start, end, _ = _WAL.unpack_from(message, 1)
            return WalMessage(LSN(start), LSN(end), message[_WAL_HEADER_BYTES:])
        if kind == b"k" and len(message) == 1 + _KEEPALIVE.size:
            end, _, wants_reply = _KEEPALIVE.unpack_from(message, 1)
            return Keepalive(LSN(end), bool(wants_reply))
    except ValueError as cause:
        raise ServerUnavailable("the WAL stream names an impossible position") from cause
    raise ServerUnavailable(f"the WAL stream has an unknown message: {kind!r}, {len(message)} bytes")


def encode_status(written: LSN | None, flushed: LSN | None, *, now: datetime, wants_reply: bool) -> bytes:
    """Return a status update: received up to ``written``, durable up to ``flushed``, nothing applied.

    Apply is 0 for ever: nothing can be read here, so ``synchronous_commit = remote_apply`` must not
    be satisfied by us.
    """
    microseconds = (now - _EPOCH) // _MICROSECOND
    positions = (0 if lsn is None else lsn.offset for lsn in (written, flushed, None))
    return _STATUS.pack(b"r", *positions, microseconds, wants_reply)


class Contiguous:
    """Checks that a stream goes on where it stopped: a byte lost here would be a hole in the archive."""

    def __init__(self, start: LSN) -> None:
        self.next = start

    def accept(self, message: WalMessage) -> None:
        """Step over a message.  Raises ServerUnavailable if it jumps or overlaps: connect again."""
        if message.start != self.next:
            raise ServerUnavailable(
                "the WAL stream does not join", detail=f"{message.start} came where {self.next} was due."
            )
        self.next = message.start + len(message.content)
