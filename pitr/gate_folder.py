"""The gate's folder: where PostgreSQL's ``archive_command`` and the daemon meet.

    gate           the script (pitr.gate_script)
    acked/NAME     empty: the file is durable; only ever believed of an older file
    refused/NAME   why it will not be acknowledged
    todo/NAME      a copy that PostgreSQL's side handed over, complete; todo/.NAME.PID is not
    aside/…        copies that differ from what is archived under their name
    daemon         the daemon's process id
    streams        there while WAL is streamed beside

Everything in it can be lost: PostgreSQL then hands over again.  The server may run as another user, of the
folder's group.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.gate_script import (
    ACKED_NAME,
    DAEMON_NAME,
    HANDED_NAME,
    REFUSED_NAME,
    SCRIPT_NAME,
    STREAMS_NAME,
    gate_script,
)
from pitr.wal.handed import HandedName, parse_handed_name

ASIDE_NAME: Final = "aside"
# Sixteen GiB of usual segments.  PostgreSQL asks for an older one only if its archiver is as far behind; then
# the file itself is compared.
ACKED_MAX: Final = 1024
REFUSED_MAX: Final = 256
ASIDE_MAX: Final = 16
_HANDED_MAX: Final = 4096
# A copy takes seconds; one that was killed is removed after this long.
_PART_AGE_S_MAX: Final = 600.0
# Some shells compare whole seconds only.  So much later no server that was set back has written a segment.
_COARSE_NS: Final = 1_000_000_000
_PART = re.compile(r"\.[0-9A-Za-z.]+")


@dataclass(frozen=True, slots=True)
class HandedFile:
    """A complete copy in ``todo/``."""

    name: HandedName
    path: Path
    size_bytes: int
    stamp: tuple[int, int]


class GateFolder:
    """One gate's folder, worked on by one daemon.  Thread-safe: each call is of a few system calls.

    ``group_id``: the group that PostgreSQL's user is in, where that is another one than the daemon's.
    Methods raise OSError.
    """

    def __init__(
        self, root: Path, *, group_id: int | None = None, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.root: Final = root
        self._group_id: Final = group_id
        self._clock_ns: Final = clock_ns
        self._acked: deque[str] = deque()
        self._refused: deque[str] = deque()

    def make(self) -> None:
        """Make the folder and write the script.  May be repeated; what is in it stays."""
        modes = {"": 0o750, ACKED_NAME: 0o750, REFUSED_NAME: 0o750, HANDED_NAME: 0o770}
        for name, mode in modes.items():
            folder = self.root / name
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._share(folder, mode | stat.S_ISGID)
        (self.root / ASIDE_NAME).mkdir(mode=0o700, exist_ok=True)
        self._write(SCRIPT_NAME, gate_script(), 0o750)

    def begin(self) -> None:
        """Forget what an earlier daemon acknowledged and refused, and say that this one is here."""
        self.make()
        for folder in (ACKED_NAME, REFUSED_NAME):
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    Path(entry.path).unlink()
        self._acked.clear()
        self._refused.clear()
        self.streams(is_streaming=False)
        self._write(DAEMON_NAME, f"{os.getpid()}\n", 0o640)

    def forget_handed(self) -> None:
        """Remove what was handed over and not taken, while no daemon is here; PostgreSQL hands it over again.

        Before a new writer epoch: what the server's past self handed over must not become its first WAL.
        """
        todo = self.root / HANDED_NAME
        for path in todo.iterdir() if todo.is_dir() else ():
            path.unlink(missing_ok=True)

    def end(self) -> None:
        """Say that no daemon is here."""
        for name in (STREAMS_NAME, DAEMON_NAME):
            (self.root / name).unlink(missing_ok=True)

    def streams(self, *, is_streaming: bool) -> None:
        """Say whether the stream brings WAL by itself, so that it need not be copied."""
        path = self.root / STREAMS_NAME
        if is_streaming:
            self._write(STREAMS_NAME, "", 0o640)
        else:
            path.unlink(missing_ok=True)

    def acknowledge(self, name: str, *, copy: HandedFile | None = None) -> None:
        """Publish a file as durable, and forget the oldest such word beyond the bound.  May be repeated.

        With a ``copy`` it is believed of that copy, also after the clock was set back.
        """
        self._publish(ACKED_NAME, name, b"", self._acked, ACKED_MAX, copy)

    def refuse(self, name: str, reason: str, *, copy: HandedFile | None = None) -> None:
        """Say why a file will not be acknowledged."""
        line = " ".join(reason.split()).encode("utf-8", "replace") + b"\n"
        self._publish(REFUSED_NAME, name, line, self._refused, REFUSED_MAX, copy)

    def handed(self) -> list[HandedFile]:
        """Return what was handed over and is complete, in PostgreSQL's order; remove what a kill left."""
        found: list[HandedFile] = []
        with os.scandir(self.root / HANDED_NAME) as entries:
            for number, entry in enumerate(entries):
                if number >= _HANDED_MAX:
                    break
                name = parse_handed_name(entry.name)
                with suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if name is not None and stat.S_ISREG(facts.st_mode):
                        stamp = (facts.st_ino, facts.st_mtime_ns)
                        found.append(HandedFile(name, Path(entry.path), facts.st_size, stamp))
                    elif _PART.fullmatch(entry.name) and self._is_old(facts.st_mtime_ns):
                        Path(entry.path).unlink()
        return sorted(found, key=lambda file: file.name.order)

    def is_acked_since(self, file: HandedFile) -> bool:
        """Tell whether a file was acknowledged after it was handed over."""
        with suppress(FileNotFoundError):
            acked = (self.root / ACKED_NAME / file.name.text).stat()
            return acked.st_mtime_ns - _COARSE_NS > file.stamp[1]
        return False

    def open(self, file: HandedFile) -> int:
        """Return a descriptor of exactly that copy; of a regular file only.  Raises OSError."""
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        facts = os.fstat(descriptor)
        if (facts.st_ino, facts.st_mtime_ns) != file.stamp or facts.st_size != file.size_bytes:
            os.close(descriptor)
            raise OSError(f"{file.path} has just been replaced")
        return descriptor

    def has_handed(self, name: str) -> bool:
        """Tell whether there is a copy of a file, which then decides on its own acknowledgement."""
        return (self.root / HANDED_NAME / name).exists()

    def remove(self, file: HandedFile) -> None:
        """Drop a copy that is needed no more."""
        file.path.unlink(missing_ok=True)

    def keep_aside(self, file: HandedFile, digest: bytes) -> bool:
        """Keep a copy that is not the archive's; False if as many are kept already, and it is dropped."""
        place = self.root / ASIDE_NAME / f"{file.name.text}.{digest.hex()[:16]}"
        if not place.exists() and sum(1 for _ in place.parent.iterdir()) >= ASIDE_MAX:
            self.remove(file)
            return False
        file.path.replace(place)
        return True

    def _publish(
        self,
        folder: str,
        name: str,
        content: bytes,
        kept: deque[str],
        kept_max: int,
        copy: HandedFile | None,
    ) -> None:
        path = self.root / folder / name
        part = path.with_name(f".{name}.new")
        part.write_bytes(content)
        self._share(part, 0o640)
        at = max(self._clock_ns(), 0 if copy is None else copy.stamp[1]) + _COARSE_NS
        os.utime(part, ns=(at, at))
        part.replace(path)
        kept.append(name)
        while len(kept) > kept_max:
            oldest = kept.popleft()
            if oldest not in kept:
                (self.root / folder / oldest).unlink(missing_ok=True)

    def _write(self, name: str, text: str, mode: int) -> None:
        part = self.root / f".{name}.new"
        part.write_text(text)
        self._share(part, mode)
        part.replace(self.root / name)

    def _share(self, path: Path, mode: int) -> None:
        """Give a file to the server's group, or keep it to its owner."""
        if self._group_id is not None:
            os.chown(path, -1, self._group_id)
        path.chmod(mode if self._group_id is not None else mode & 0o700)

    def _is_old(self, modified_ns: int) -> bool:
        return self._clock_ns() - modified_ns > _PART_AGE_S_MAX * 1e9
