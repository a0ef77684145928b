"""An RDB file over Redis' replication protocol: asked for as a replica asks, and then hung up.

The way of ``redis-cli --rdb``.  It needs no file of the server's host, and the server makes the file as it
makes any: by BGSAVE, in a process beside.  Reference: Redis src/replication.c, ``syncCommand``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pitr.derived.access import RedisAccess
from pitr.derived.site import Deadline
from pitr.derived.topology import Master
from pitr.errors import DerivedRefused, DerivedUnavailable

CHUNK_BYTES: Final = 1 << 20
_LINE_BYTES_MAX: Final = 64 * 1024
# A server that is at its BGSAVE sends an empty line each second.
_SILENCE_S_MIN: Final = 15.0


class ReplicationLink:
    """One connection that asks for a file.  Not thread-safe."""

    def __init__(self, access: RedisAccess, master: Master, deadline: Deadline) -> None:
        self._access: Final = access
        self._address: Final = master.address
        self._deadline: Final = deadline
        self._socket = socket.create_connection((master.host, master.port), timeout=access.timeout_s)
        try:
            if access.tls is not None:
                self._socket = access.tls.context().wrap_socket(self._socket, server_hostname=master.host)
            self._socket.settimeout(max(access.timeout_s, _SILENCE_S_MIN))
        except BaseException:
            self._socket.close()
            raise
        self._buffer = bytearray()

    def close(self) -> None:
        self._socket.close()

    def begin(self) -> int:
        """Log in, ask for the file, and return its length once the server begins to send it."""
        if self._access.password is not None:
            user = [] if self._access.username is None else [self._access.username]
            self._send("AUTH", *user, self._access.password)
            self._expect(b"+OK")
        self._send("SYNC")
        while True:
            self._deadline.check(f"the snapshot of {self._address}")
            line = self._line()
            if not line:
                continue
            if line.startswith(b"$") and line[1:].isdigit() and len(line) < 20:
                return int(line[1:])
            raise self._refused(line)

    def chunks(self, size_bytes: int) -> Iterator[bytes]:
        """Yield the file in chunks of CHUNK_BYTES, the last one shorter; all of it, or DerivedUnavailable."""
        left = size_bytes
        while left:
            self._deadline.check(f"the snapshot of {self._address}")
            wanted = min(CHUNK_BYTES, left)
            while len(self._buffer) < wanted:
                self._receive(wanted - len(self._buffer))
            yield bytes(self._buffer[:wanted])
            del self._buffer[:wanted]
            left -= wanted

    def _send(self, *words: str) -> None:
        raw = [word.encode() for word in words]
        parts = [b"*%d\r\n" % len(raw), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in raw)]
        self._socket.sendall(b"".join(parts))

    def _expect(self, answer: bytes) -> None:
        line = self._line()
        if line != answer:
            raise self._refused(line)

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_BYTES_MAX:
                raise self._refused(b"an answer without an end")
            self._receive(4096)
        line = bytes(self._buffer[:end]).rstrip(b"\r")
        del self._buffer[: end + 1]
        return line

    def _receive(self, size_bytes: int) -> None:
        received = self._socket.recv(max(4096, size_bytes))
        if not received:
            raise ConnectionError("the server closed the connection")
        self._buffer += received

    def _refused(self, line: bytes) -> DerivedRefused:
        return DerivedRefused(
            f"Redis at {self._address} gives no snapshot",
            detail=self._access.redact(line.decode("utf-8", "replace")),
            hint="docs/redis.md lists the commands that the user must be allowed",
        )


@contextmanager
def open_link(access: RedisAccess, master: Master, deadline: Deadline) -> Iterator[ReplicationLink]:
    """Connect, and close at the end.  Raises DerivedUnavailable for whatever the network does."""
    link: ReplicationLink | None = None
    try:
        link = ReplicationLink(access, master, deadline)
        yield link
    except OSError as error:
        raise DerivedUnavailable(
            f"Redis at {master.address} gave no whole snapshot",
            detail=access.redact(str(error)) or type(error).__name__,
            hint="repeat the command; see the server's log, and its client-output-buffer-limit for replicas",
        ) from None
    finally:
        if link is not None:
            link.close()
