"""The replication protocol: one physical connection, its commands, and its stream of messages.

Thin: it owns the socket and gives every wait a deadline.  What the messages say is in
``pitr.postgres.receiver``.  libpq directly, for psycopg's own connection knows no COPY BOTH.

Reference: PostgreSQL manual, "Streaming Replication Protocol" (55.4 in 17); majors 15 to 18.
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pitr.errors import MalformedValue, ServerRefused, ServerUnavailable
from pitr.postgres.address import Endpoint
from pitr.postgres.receiver import Contiguous, WalMessage, decode_message
from pitr.postgres.replication_errors import (
    HistoryMissing,
    WalRemoved,
    connection_error,
    server_error,
)
from pitr.wal.lsn import LSN
from pitr.wal.segment import check_segment_bytes
from pitr.wal.timeline import HISTORY_BYTES_MAX, TimelineId

CONNECT_TIMEOUT_S = 20
COMMAND_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 5.0
# OpenSSL takes whole TLS records, of 16 KiB at most, from the socket; libpq asks it for what fits its buffer,
# at least 8 KiB (fe-misc.c, pqReadData).  What is left over there no poll sees: two more reads take it in.
_TLS_READS = 2
VERSION_MIN = 150000
# As PostgreSQL's own: no quoting is needed, so nothing can be smuggled into a command.
_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}")
_SIZE = re.compile(r"([0-9]+)(B|kB|MB|GB)?")
_UNITS = {None: 1, "B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_DEFAULTS: dict[str, str | int] = {
    "application_name": "pitr",
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What IDENTIFY_SYSTEM says: whose WAL this is, on which timeline, and flushed up to where."""

    system_identifier: int
    timeline: TimelineId
    flushed: LSN


@dataclass(frozen=True, slots=True)
class SlotState:
    """A physical slot.  ``restart`` None: it keeps no WAL, being new or invalidated."""

    restart: LSN | None
    timeline: TimelineId | None


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The server ended the stream; with a next timeline, the streamed one ended at ``next_start``."""

    next_timeline: TimelineId | None
    next_start: LSN | None


class ReplicationConnection:
    """One connection.  Not thread-safe.

    Any method raises ServerUnavailable when the connection is lost or no answer comes in time, and
    ServerRefused when PostgreSQL says no; the connection is of no use then.
    """

    def __init__(self, pgconn: pq.abc.PGconn, clock: Callable[[], float]) -> None:
        self._pg = pgconn
        self._clock = clock

    @classmethod
    def connect(cls, dsn: str, *, clock: Callable[[], float] = time.monotonic) -> Self:
        """Open a connection for ``dsn`` (a conninfo string or URI); what it says wins over our defaults."""
        try:
            settings: dict[str, str | int | None] = {**_DEFAULTS, **conninfo_to_dict(dsn)}
            settings["replication"] = "true"
            conninfo = make_conninfo("", **settings)
        except psycopg.Error as cause:
            raise MalformedValue(f"not a connection string: {cause}") from cause
        try:
            pgconn = pq.PGconn.connect(conninfo.encode())
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause
        if pgconn.status != pq.ConnStatus.OK:
            text = pgconn.error_message.decode("utf-8", "replace")
            pgconn.finish()
            raise connection_error(text)
        connection = cls(pgconn, clock)
        if pgconn.server_version < VERSION_MIN:
            connection.close()
            raise ServerRefused(
                f"PostgreSQL {pgconn.server_version // 10_000} is too old",
                hint="Version 15 or later is needed.",
            )
        pgconn.nonblocking = 1
        return connection

    @property
    def endpoint(self) -> Endpoint:
        """Which of the hosts of the connection string this is."""
        return Endpoint(self._pg.host.decode(), self._pg.port.decode())

    @property
    def server_version(self) -> int:
        """The server's version, as ``server_version_num``."""
        return self._pg.server_version

    def close(self) -> None:
        """Close the connection.  May be repeated."""
        self._pg.finish()

    def identify(self) -> ServerIdentity:
        """Ask whose WAL this is."""
        system, timeline, flushed = self._row(b"IDENTIFY_SYSTEM", 3)
        if system is None or timeline is None or flushed is None:
            raise ServerUnavailable("the server does not say who it is")
        return ServerIdentity(int(system), TimelineId(int(timeline)), LSN.parse(flushed.decode()))

    def segment_bytes(self) -> int:
        """Ask the size of the cluster's WAL segments."""
        text = (self._row(b"SHOW wal_segment_size", 1)[0] or b"").decode()
        match = _SIZE.fullmatch(text)
        if match is None:
            raise MalformedValue(f"not a size: {text!r}")
        return check_segment_bytes(int(match[1]) * _UNITS[match[2]])

    def data_directory(self) -> Path | None:
        """Ask where the server's files are, on its host; None if the role may not know.

        Nothing can be asked on this connection afterwards.
        """
        try:
            content = self._row(b"SHOW data_directory", 1)[0]
        except ServerRefused:
            return None
        return None if content is None else Path(content.decode())

    def is_standby(self) -> bool:
        """Say whether the server is in recovery, and so may not have all WAL yet."""
        return self._row(b"SHOW in_hot_standby", 1)[0] == b"on"

    def read_slot(self, name: str) -> SlotState | None:
        """Return the state of a physical slot; None if there is no slot of that name."""
        kind, restart, timeline = self._row(b"READ_REPLICATION_SLOT " + _slot(name), 3)
        if kind is None:
            return None
        return SlotState(
            None if restart is None else LSN.parse(restart.decode()),
            None if timeline is None else TimelineId(int(timeline)),
        )

    def create_slot(self, name: str) -> None:
        """Make a physical slot that keeps WAL from the last checkpoint on.  Raises SlotExists."""
        self._ask(b"CREATE_REPLICATION_SLOT " + _slot(name) + b" PHYSICAL RESERVE_WAL")

    def drop_slot(self, name: str) -> None:
        """Drop a slot, such as one that was invalidated.  Raises SlotLost if there is none."""
        self._ask(b"DROP_REPLICATION_SLOT " + _slot(name))

    def timeline_history(self, timeline: TimelineId) -> bytes:
        """Return the content of a timeline's history file.

        Raises HistoryMissing, and more can be asked then: a standby has only those that it was given.
        """
        command = b"TIMELINE_HISTORY %d" % timeline.number
        try:
            content = self._row(command, 2, missing=HistoryMissing)[1] or b""
        except HistoryMissing:
            self._results(HistoryMissing)  # until the server is ready for the next command
            raise
        if len(content) > HISTORY_BYTES_MAX:
            raise MalformedValue(f"history file of timeline {timeline} has {len(content)} bytes")
        return content

    def start_streaming(self, slot: str, start: LSN, timeline: TimelineId) -> StreamEnd | None:
        """Begin to stream; a StreamEnd at once if the timeline ends where it would start.

        Raises SlotLost, WalRemoved.
        """
        command = b"START_REPLICATION SLOT %b PHYSICAL %b TIMELINE %d" % (
            _slot(slot),
            str(start).encode(),
            timeline.number,
        )
        results = self._ask(command, missing=WalRemoved)
        if results and results[-1].status == pq.ExecStatus.COPY_BOTH:
            return None
        return _stream_end(results)

    def read_wal(self, start: LSN, end: LSN, timeline: TimelineId) -> bytes:
        """Return WAL that the server has; nothing can be asked on this connection afterwards.

        Raises as ``iter_wal``.
        """
        return b"".join(content for _, content in self.iter_wal(start, end, timeline))

    def iter_wal(self, start: LSN, end: LSN, timeline: TimelineId) -> Iterator[tuple[LSN, bytes]]:
        """Yield WAL that the server has, as it comes; nothing can be asked on this connection afterwards.

        Raises WalRemoved if the server has it no longer, or left the timeline before ``end``.
        """
        command = b"START_REPLICATION PHYSICAL %b TIMELINE %d" % (str(start).encode(), timeline.number)
        results = self._ask(command, missing=WalRemoved)
        if not results or results[-1].status != pq.ExecStatus.COPY_BOTH:
            raise WalRemoved(f"timeline {timeline} ends before {start}")
        deadline = self._clock() + COMMAND_TIMEOUT_S
        stream = Contiguous(start)
        while stream.next < end:
            message = self.receive()
            if isinstance(message, StreamEnd):
                raise WalRemoved(f"timeline {timeline} ends before {end}")
            if message is not None:
                decoded = decode_message(message)
                if isinstance(decoded, WalMessage):
                    stream.accept(decoded)
                    yield decoded.start, bytes(decoded.content[: end - decoded.start])
                continue
            left_s = deadline - self._clock()
            if left_s <= 0:
                raise ServerUnavailable(f"no WAL from the server in {COMMAND_TIMEOUT_S:g} s")
            poll = select.poll()
            poll.register(self._pg.socket, select.POLLIN)
            if poll.poll(left_s * 1000):
                self._take_in()

    def receive(self) -> memoryview | StreamEnd | None:
        """Return the next message if all of it is here, without waiting; None if not."""
        try:
            length, message = self._pg.get_copy_data(1)
            for _ in range(_TLS_READS if self._pg.ssl_in_use else 0):
                if length:
                    break
                self._pg.consume_input()
                length, message = self._pg.get_copy_data(1)
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause
        if length > 0:
            return message
        return None if length == 0 else self._finish_stream()

    def send(self, message: bytes) -> None:
        """Send one message on the stream."""
        try:
            self._pg.put_copy_data(message)
            # What does not fit the socket now goes with the next call; a message has 34 bytes.
            self._pg.flush()
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause

    def end_streaming(self) -> None:
        """End the stream in order, so that the server reads all that was sent before.

        What it still sends is thrown away; the slot keeps it.
        """
        deadline = self._clock() + _END_TIMEOUT_S
        try:
            self._pg.put_copy_end()
            while True:
                length = 0 if self._pg.flush() else self._pg.get_copy_data(1)[0]
                left_s = deadline - self._clock()
                if length < 0 or left_s <= 0:
                    return
                if length:
                    continue
                poll = select.poll()
                poll.register(self._pg.socket, select.POLLIN)
                if poll.poll(left_s * 1000):
                    self._pg.consume_input()
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause

    def wait(self, timeout_s: float, *, wake_fd: int, is_reading: bool = True) -> bool:
        """Wait until bytes have come, ``wake_fd`` is readable, or the time is over; take in the bytes.

        Returns whether ``wake_fd`` is readable.
        Without ``is_reading`` what comes stays in the socket, so that the server holds back.
        """
        poll = select.poll()
        poll.register(wake_fd, select.POLLIN)
        if is_reading:
            poll.register(self._pg.socket, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(max(timeout_s, 0.0) * 1000)]
        if any(fd != wake_fd for fd in ready):
            self._take_in()
        return wake_fd in ready

    def _take_in(self) -> None:
        try:
            self._pg.consume_input()
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause

    def _row(
        self, command: bytes, columns: int, *, missing: type[ServerRefused] = ServerRefused
    ) -> list[bytes | None]:
        results = self._ask(command, missing=missing)
        if not results or results[0].ntuples != 1 or results[0].nfields < columns:
            raise ServerUnavailable(f"no answer to {command.decode()}")
        return [results[0].get_value(0, column) for column in range(columns)]

    def _ask(self, command: bytes, *, missing: type[ServerRefused] = ServerRefused) -> list[pq.abc.PGresult]:
        """Send a command and return all its results, or those up to the one that begins a stream.

        Raises ``missing`` if the server does not find the file that it is asked for.
        """
        try:
            self._pg.send_query(command)
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause
        return self._results(missing)

    def _results(self, missing: type[ServerRefused] = ServerRefused) -> list[pq.abc.PGresult]:
        """Wait for results; what a command may give is few, so a deadline bounds their number."""
        deadline = self._clock() + COMMAND_TIMEOUT_S
        results = []
        while (result := self._next_result(deadline)) is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise server_error(result, missing)
            results.append(result)
            if result.status in (pq.ExecStatus.COPY_BOTH, pq.ExecStatus.COPY_IN):
                break
        return results

    def _next_result(self, deadline: float) -> pq.abc.PGresult | None:
        try:
            while self._pg.flush() or self._pg.is_busy():
                left_s = deadline - self._clock()
                if left_s <= 0:
                    raise ServerUnavailable(f"no answer from the server in {COMMAND_TIMEOUT_S:g} s")
                poll = select.poll()
                poll.register(self._pg.socket, select.POLLIN)
                # Waiting for room to send is rare, and as short as a command.
                poll.poll(min(left_s, 1.0) * 1000)
                # Also if nothing came: see _TLS_READS.
                self._pg.consume_input()
            return self._pg.get_result()
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause

    def _finish_stream(self) -> StreamEnd:
        """Learn why the server ended the stream: the timeline's end, or its own."""
        results = self._results(WalRemoved)
        if results and results[-1].status == pq.ExecStatus.COPY_IN:
            try:
                self._pg.put_copy_end()
            except psycopg.Error as cause:
                raise connection_error(str(cause)) from cause
            results = self._results(WalRemoved)
        return _stream_end(results)


def _stream_end(results: list[pq.abc.PGresult]) -> StreamEnd:
    for result in results:
        if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples == 1:
            timeline, start = result.get_value(0, 0), result.get_value(0, 1)
            if timeline is not None and start is not None:
                return StreamEnd(TimelineId(int(timeline)), LSN.parse(start.decode()))
    return StreamEnd(None, None)


def _slot(name: str) -> bytes:
    if _SLOT_NAME.fullmatch(name) is None:
        raise MalformedValue(f"not a replication slot's name: {name!r}")
    return name.encode()
