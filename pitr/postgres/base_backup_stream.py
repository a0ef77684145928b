"""``BASE_BACKUP`` over the replication protocol: a server's files as tar archives, from another host.

One stream, one core of the server's: three to five times slower than reading the files, and the only way
where they are elsewhere.  Reference: PostgreSQL manual, "Streaming Replication Protocol", BASE_BACKUP; 15 to
18; src/backend/backup/basebackup_incremental.c (the form of INCREMENTAL files).
"""

from __future__ import annotations

import io
import re
import select
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final

import numpy as np
import psycopg
from psycopg import pq

from pitr.errors import MalformedValue, ServerUnavailable
from pitr.postgres.page import PAGE_BYTES, Blocks
from pitr.postgres.replication import ReplicationConnection
from pitr.postgres.replication_errors import connection_error, server_error
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# A spread checkpoint comes before the first byte; after that the server is never silent for long.
CHECKPOINT_TIMEOUT_S: Final = 3600.0
SILENCE_S_MAX: Final = 300.0
MANIFEST_BYTES_MAX: Final = 1 << 30
_INCREMENTAL_MAGIC: Final = 0xD3AE1F0D
_INCREMENTAL_HEAD: Final = struct.Struct("<III")
_UPLOAD_BYTES: Final = 64 * 1024
_WAIT_S: Final = 1.0
_LABEL: Final = re.compile(r"[^'\\\x00-\x1f]{1,200}")
_TABLESPACE: Final = re.compile(r"([1-9][0-9]{0,9})\.tar")


@dataclass(frozen=True, slots=True)
class StreamStart:
    """Where the backup's WAL begins, and the tablespaces outside the data directory: OID and location."""

    lsn: LSN
    timeline: TimelineId
    tablespaces: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar archive begins; ``tablespace`` None: the data directory's."""

    tablespace: int | None


class BaseBackupStream(ReplicationConnection):
    """One base backup on a connection of its own.  ``cancelled`` is asked each second, and raises to stop."""

    def upload_manifest(self, manifest: IO[bytes], cancelled: Callable[[], None]) -> None:
        """Give the server the manifest of the backup to build on (17 and later).

        Raises ServerRefused, ServerUnavailable, and what reading it raises.
        """
        self._ask(b"UPLOAD_MANIFEST")
        try:
            while piece := manifest.read(_UPLOAD_BYTES):
                self._pg.put_copy_data(piece)
                deadline = self._clock() + SILENCE_S_MAX
                while self._pg.flush():
                    self._wait(deadline, cancelled, select.POLLIN | select.POLLOUT)
            self._pg.put_copy_end()
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause
        self._results()

    def begin(
        self, label: str, *, fast: bool, is_incremental: bool, cancelled: Callable[[], None]
    ) -> StreamStart:
        """Start the backup, after a checkpoint.  Raises ServerRefused, ServerUnavailable."""
        if _LABEL.fullmatch(label) is None:
            raise MalformedValue(f"not a label for a backup: {label!r}")
        options = [
            f"LABEL '{label}'",
            f"CHECKPOINT '{'fast' if fast else 'spread'}'",
            # We judge pages ourselves: the server would end the backup at the first bad one.
            "VERIFY_CHECKSUMS false",
            "MANIFEST 'yes'",
            "MANIFEST_CHECKSUMS 'CRC32C'",
            "TABLESPACE_MAP",
            "WAL false",
            "WAIT false",
        ]
        if is_incremental:
            options.append("INCREMENTAL")
        self._send(f"BASE_BACKUP ({', '.join(options)})")
        start = self._next(CHECKPOINT_TIMEOUT_S, cancelled)
        spaces = self._next(CHECKPOINT_TIMEOUT_S, cancelled)
        self._next(CHECKPOINT_TIMEOUT_S, cancelled)  # COPY OUT begins
        found = []
        for row in range(spaces.ntuples):
            oid, location = spaces.get_value(row, 0), spaces.get_value(row, 1)
            if oid is not None and location is not None:
                found.append((int(oid), location.decode("utf-8", "surrogateescape")))
        lsn, timeline = _position(start)
        return StreamStart(lsn, timeline, tuple(found))

    def messages(
        self, cancelled: Callable[[], None], on_manifest: Callable[[bytes], None]
    ) -> Iterator[Archive | bytes]:
        """Yield each archive's beginning, then its bytes; ``on_manifest`` gets the manifest's."""
        manifest_bytes = 0
        is_manifest = False
        while (message := self._copy_data(cancelled)) is not None:
            kind, content = bytes(message[:1]), message[1:]
            if kind == b"n":
                name = bytes(content).split(b"\0", 1)[0].decode("utf-8", "replace")
                is_manifest = False
                yield _archive(name)
            elif kind == b"m":
                is_manifest = True
            elif kind == b"d" and is_manifest:
                manifest_bytes += len(content)
                if manifest_bytes > MANIFEST_BYTES_MAX:
                    raise MalformedValue("the server's backup manifest is too long")
                on_manifest(bytes(content))
            elif kind == b"d":
                yield bytes(content)
            elif kind != b"p":
                raise MalformedValue(f"not a message of a base backup: {kind!r}")

    def finish(self, cancelled: Callable[[], None]) -> LSN:
        """Return where the WAL ends that the backup needs.  Raises ServerRefused, as after a promotion."""
        lsn, _ = _position(self._next(SILENCE_S_MAX, cancelled))
        try:
            while self._result(self._clock() + SILENCE_S_MAX, cancelled) is not None:
                continue
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause
        return lsn

    def _send(self, command: str) -> None:
        try:
            self._pg.send_query(command.encode())
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause

    def _next(self, timeout_s: float, cancelled: Callable[[], None]) -> pq.abc.PGresult:
        try:
            result = self._result(self._clock() + timeout_s, cancelled)
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause
        if result is None:
            raise ServerUnavailable("the server ended the base backup without a word")
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise server_error(result)
        return result

    def _result(self, deadline: float, cancelled: Callable[[], None]) -> pq.abc.PGresult | None:
        """Return the next result, None after the last; libpq alone would wait for it for ever."""
        while self._pg.flush() or self._pg.is_busy():
            self._wait(deadline, cancelled)
        return self._pg.get_result()

    def _copy_data(self, cancelled: Callable[[], None]) -> memoryview | None:
        deadline = self._clock() + SILENCE_S_MAX
        try:
            while True:
                length, message = self._pg.get_copy_data(1)
                if length > 0:
                    return message
                if length < 0:
                    return None
                self._wait(deadline, cancelled)
        except psycopg.Error as cause:
            raise connection_error(str(cause)) from cause

    def _wait(self, deadline: float, cancelled: Callable[[], None], events: int = select.POLLIN) -> None:
        """Wait a moment for one of ``events`` on the socket, and take in what has come."""
        cancelled()
        if self._clock() > deadline:
            raise ServerUnavailable("the server has stopped answering in the middle of a base backup")
        poll = select.poll()
        poll.register(self._pg.socket, events)
        if any(event & ~select.POLLOUT for _, event in poll.poll(_WAIT_S * 1000)):
            self._pg.consume_input()


class ArchiveReader(io.RawIOBase):
    """One archive's bytes as a file, until the next archive begins, which is then ``following``."""

    def __init__(self, messages: Iterator[Archive | bytes]) -> None:
        self._messages = messages
        self._rest = b""
        self.following: Archive | None = None
        self._is_over = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Return ``size`` bytes, fewer only at the archive's end."""
        parts, wanted = [], size
        while wanted and (self._rest or self._fill()):
            part = self._rest if wanted < 0 else self._rest[:wanted]
            self._rest = self._rest[len(part) :]
            parts.append(part)
            wanted -= len(part) if wanted > 0 else 0
        return b"".join(parts)

    def _fill(self) -> bool:
        if self._is_over:
            return False
        message = next(self._messages, None)
        if isinstance(message, bytes):
            self._rest = message
            return True
        self._is_over, self.following = True, message
        return False


def iter_archives(messages: Iterator[Archive | bytes]) -> Iterator[tuple[Archive, tarfile.TarFile]]:
    """Yield each archive with its members; one must be read to its end before the next.

    Raises MalformedValue if the server sends something else than tar.
    """
    archive = next(messages, None)
    while archive is not None:
        if not isinstance(archive, Archive):
            raise MalformedValue("a base backup begins without an archive")
        reader = ArchiveReader(messages)
        try:
            with tarfile.open(fileobj=reader, mode="r|", bufsize=_UPLOAD_BYTES) as members:
                yield archive, members
        except tarfile.TarError as cause:
            raise MalformedValue(f"not a tar archive: {cause}") from cause
        while reader.read(_UPLOAD_BYTES):
            continue
        archive = reader.following


@dataclass(frozen=True, slots=True)
class IncrementalHead:
    """What stands before the pages of an INCREMENTAL file: their blocks, and how much the parent keeps."""

    blocks: Blocks
    kept_blocks: int

    @property
    def file_blocks(self) -> int:
        """Return the file's length; what neither gives is zero (pg_combinebackup, reconstruct.c)."""
        return max(self.kept_blocks, int(self.blocks[-1]) + 1 if len(self.blocks) else 0)


def read_incremental_head(read: Callable[[int], bytes], *, blocks_max: int) -> IncrementalHead:
    """Read the head by ``read``, which gives exactly so many bytes.  Raises MalformedValue."""
    magic, count, kept_blocks = _INCREMENTAL_HEAD.unpack(read(_INCREMENTAL_HEAD.size))
    if magic != _INCREMENTAL_MAGIC or count > blocks_max or kept_blocks > blocks_max:
        raise MalformedValue("not the head of an incremental file")
    blocks: Blocks = np.frombuffer(read(4 * count), dtype="<u4")
    if count:
        read(-(_INCREMENTAL_HEAD.size + 4 * count) % PAGE_BYTES)
        if (np.diff(blocks.astype(np.int64)) <= 0).any() or blocks[-1] >= blocks_max:
            raise MalformedValue("the blocks of an incremental file are out of order")
    return IncrementalHead(blocks, kept_blocks)


def _archive(name: str) -> Archive:
    if name == "base.tar":
        return Archive(None)
    match = _TABLESPACE.fullmatch(name)
    if match is None:
        raise MalformedValue(f"not an archive of a base backup: {name!r}")
    return Archive(int(match[1]))


def _position(result: pq.abc.PGresult) -> tuple[LSN, TimelineId]:
    lsn, timeline = result.get_value(0, 0), result.get_value(0, 1)
    if lsn is None or timeline is None:
        raise ServerUnavailable("the server does not say where the base backup is")
    return LSN.parse(lsn.decode()), TimelineId(int(timeline))
