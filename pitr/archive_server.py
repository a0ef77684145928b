"""What the archiver asks a server outside of its stream, each in a connection of its own."""

from __future__ import annotations

from collections.abc import Callable

from pitr.postgres.replication import ReplicationConnection
from pitr.postgres.server import Server


def ask_segment_bytes(conninfo: str, *, is_streamed: bool, clock: Callable[[], float]) -> int:
    """Return the size of the server's WAL segments, asked over the kind of connection that WAL needs.

    Raises ServerRefused, ServerUnavailable.
    """
    if not is_streamed:
        with Server.connect(conninfo) as server:
            return server.wal_identity()[1]
    connection = ReplicationConnection.connect(conninfo, clock=clock)
    try:
        return connection.segment_bytes()
    finally:
        connection.close()


def drop_slot(conninfo: str, slot: str, *, clock: Callable[[], float]) -> None:
    """Drop the slot; whoever streams next makes a new one.  Raises ServerRefused, ServerUnavailable."""
    connection = ReplicationConnection.connect(conninfo, clock=clock)
    try:
        connection.drop_slot(slot)
    finally:
        connection.close()
