"""The journal of a base backup: what each pack that the store has acknowledged holds, as MACs.

One file for each attempt, in the host's state directory.  It holds neither keys nor content: what it says
of the bytes are MACs with keys of the host (docs/adr/0008), and each line ends in one over itself and the
line before, so a line that is damaged, cut, moved or from elsewhere ends what is believed.

Losing it costs that the next attempt begins anew, and nothing else.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from pitr.backup_journal_line import (
    LINE_BYTES_MAX,
    MAC_BYTES,
    JournaledPack,
    JournalHead,
    decode_head,
    decode_pack,
    encode_head,
    encode_pack,
    line_mac,
)
from pitr.catalogue.backup_record import check_backup_id
from pitr.errors import MalformedValue
from storage.synced_file import sync_directory

# About 130 bytes for each MiB of files, and 200 for each small file: 8 TiB.
JOURNAL_BYTES_MAX: Final = 1 << 30
_INFIX: Final = ".resume-"


def next_journal_path(folder: Path, backup: str) -> Path:
    """Return where the journal of the next attempt at a backup lies."""
    last = [int(path.name[-2:]) for path in journal_paths(folder).get(backup, [])]
    return folder / f"{check_backup_id(backup)}{_INFIX}{max(last, default=0) + 1:02d}"


def journal_paths(folder: Path) -> dict[str, list[Path]]:
    """Return all journals in ``folder`` by backup, those of a backup in the order of its attempts."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{_INFIX}[0-9][0-9]")):
        found.setdefault(path.name.rpartition(_INFIX)[0], []).append(path)
    return found


class JournalWriter:
    """Writes one journal, each line to the disk before the next.  Thread-safe.

    A journal that cannot be written is removed and ``note`` is told: the backup goes on without, and
    a full disk has better uses for the room.
    """

    def __init__(
        self,
        path: Path,
        head: JournalHead,
        key: bytes,
        *,
        note: Callable[[str], None],
        bytes_max: int = JOURNAL_BYTES_MAX,
    ) -> None:
        self._path = path
        self._key = key
        self._note = note
        self._left_bytes = bytes_max
        self._lock = threading.Lock()
        self._mac = b""
        self._packs = 0
        self._file: BinaryIO | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
            self._append(encode_head(head))
            sync_directory(path.parent)
        except OSError as cause:
            self._give_up(cause)

    def add(self, pack: JournaledPack) -> None:
        """Note a pack that is at quorum."""
        line = encode_pack(pack)
        with self._lock:
            if self._file is None or len(line) >= LINE_BYTES_MAX:
                return
            if self._left_bytes < len(line):
                # What is there is as good as before; only the rest of the backup would be sent again.
                self._close()
                return
            try:
                self._append(line)
                self._packs += 1
            except OSError as cause:
                self._give_up(cause)

    @property
    def is_open(self) -> bool:
        """Whether anything more is written."""
        return self._file is not None

    def close(self) -> None:
        """End writing; one that names no pack is removed.  May be repeated."""
        with self._lock:
            if self._file is not None and not self._packs:
                self._unlink()
            self._close()

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        self._mac = line_mac(self._key, self._mac, line)
        whole = memoryview(line + self._mac + b"\n")
        self._left_bytes -= len(whole)
        while whole:
            whole = whole[self._file.write(whole) :]
        os.fsync(self._file.fileno())

    def _give_up(self, cause: OSError) -> None:
        self._close()
        # If it stays, its last line is cut, and a reader stops there.
        self._unlink()
        self._note(f"this backup could not be resumed if it were interrupted: {cause}")

    def _unlink(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class JournalReader:
    """One journal as far as its lines hold.  Close it.

    Raises MalformedValue if not even its head holds, OSError.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._key = key
        self._mac = b""
        # Whether something else than the end came after the last good line, or a line that was being written.
        self.is_damaged = False
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        self._file: BinaryIO = os.fdopen(descriptor, "rb")
        try:
            line = self._next()
            if line is None:
                raise MalformedValue(f"{path} is damaged, or not of this host")
            self.head = decode_head(line)
        except BaseException:
            self._file.close()
            raise

    def packs(self) -> Iterator[JournaledPack]:
        """Yield the packs up to the end, or to the first line that does not hold."""
        while (line := self._next()) is not None:
            yield decode_pack(line)

    def close(self) -> None:
        self._file.close()

    def _next(self) -> bytes | None:
        raw = self._file.readline(LINE_BYTES_MAX + MAC_BYTES + 1)
        line, mac = raw[: -MAC_BYTES - 1], raw[-MAC_BYTES - 1 :]
        expected = line_mac(self._key, self._mac, line)
        if mac != expected + b"\n":
            # A line that a kill has cut has no end; nothing else stands behind it.
            self.is_damaged = raw.endswith(b"\n") or self._file.read(1) != b""
            return None
        self._mac = expected
        return line


def remove_journals(paths: list[Path]) -> None:
    """Remove journals for good.  Raises OSError."""
    for path in paths:
        path.unlink(missing_ok=True)
    if paths:
        sync_directory(paths[0].parent)
