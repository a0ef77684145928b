"""What OpenSSL holds back of a message is taken in although the socket has no more to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from pitr.postgres.replication import ReplicationConnection

if TYPE_CHECKING:
    from psycopg import pq

MESSAGE = b"w" + bytes(24) + b"wal"
ROOM_BYTES = 8 * 1024
RECORD_BYTES = 16 * 1024


class Libpq:
    """Stands for libpq after one read: the rest of a TLS record is in OpenSSL, and nothing in the socket."""

    def __init__(self, *, ssl_in_use: bool) -> None:
        self.ssl_in_use = ssl_in_use
        self._pending_bytes = RECORD_BYTES - 1
        self._is_taken = False
        self.reads = 0

    def consume_input(self) -> None:
        self.reads += 1
        self._pending_bytes -= min(self._pending_bytes, ROOM_BYTES)

    def get_copy_data(self, _is_async: int) -> tuple[int, memoryview]:
        if self._pending_bytes or self._is_taken:
            return 0, memoryview(b"")
        self._is_taken = True
        return len(MESSAGE), memoryview(MESSAGE)


@pytest.mark.parametrize("ssl_in_use", [True, False])
def test_a_message_whose_end_waits_in_openssl_is_received_without_a_poll(ssl_in_use: bool) -> None:
    libpq = Libpq(ssl_in_use=ssl_in_use)
    connection = ReplicationConnection(cast("pq.abc.PGconn", libpq), lambda: 0.0)
    received = connection.receive()
    # Without TLS all that is here is in the socket, and a poll says so.
    assert received == (memoryview(MESSAGE) if ssl_in_use else None)
    assert connection.receive() is None
    assert libpq.reads == (4 if ssl_in_use else 0)
