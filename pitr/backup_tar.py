"""The files in a server's tar archives: judged page by page, and put into a part as files read here are.

A page that is bad cannot be read again: the stream does not go back.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Final

from pitr.backup_frames import runs_of
from pitr.backup_tally import Tally
from pitr.errors import BackupFailed, MalformedValue
from pitr.pipeline.pack_writer import SMALL_BYTES_MAX, FileStatus, FileWriter, PartWriter
from pitr.pipeline.seal import FRAME_CONTENT_BYTES
from pitr.postgres.base_backup_stream import Archive, iter_archives, read_incremental_head
from pitr.postgres.basebackup import FoundPage, PageRules, is_excused
from pitr.postgres.control import parse_control_file
from pitr.postgres.datadir import CONTROL_PATH, is_alien, parse_relation_path
from pitr.postgres.page import PAGE_BYTES, Blocks, blocks_from, check_pages

_PREFIX: Final = b"INCREMENTAL."
_LABEL: Final = b"backup_label"
_MAP: Final = b"tablespace_map"
_INCREMENTAL_LINE: Final = re.compile(rb"^INCREMENTAL FROM (?:LSN|TLI): .*\n", re.MULTILINE)
_LABEL_BYTES_MAX: Final = 1024 * 1024
_ZEROS: Final = bytes(FRAME_CONTENT_BYTES)


class TarCopier:
    """Copies archives into ``body``; ``watch`` is called often, and ends it by raising.

    ``system_identifier`` is the cluster's.  ``is_incremental``: the server sends some files in its own form,
    with only the blocks that changed.
    """

    def __init__(
        self,
        rules: PageRules,
        tally: Tally,
        body: PartWriter,
        watch: Callable[[], None],
        *,
        system_identifier: int,
        is_incremental: bool,
    ) -> None:
        self._rules = rules
        self._tally = tally
        self._body = body
        self._watch = watch
        self._system_identifier = system_identifier
        self._is_incremental = is_incremental
        self._labels: dict[bytes, bytes] = {}
        self._control: tuple[bytes, FileStatus] | None = None
        self.directories: list[tuple[bytes, int]] = []

    @property
    def label(self) -> bytes:
        """The backup label, as for a full backup: what a chain gives is whole.  Empty if none came."""
        return _INCREMENTAL_LINE.sub(b"", self._labels.get(_LABEL, b""))

    @property
    def tablespace_map(self) -> bytes:
        """The tablespace map; empty if none came."""
        return self._labels.get(_MAP, b"")

    @property
    def control(self) -> tuple[bytes, FileStatus]:
        """The control file, which is not in ``body``.  Raises BackupFailed if none came."""
        if self._control is None:
            raise BackupFailed("the server sent no control file")
        return self._control

    def copy(self, messages: Iterator[Archive | bytes]) -> None:
        """Copy all archives.  Raises MalformedValue, BackupFailed, and what ``watch`` raises."""
        try:
            for archive, members in iter_archives(messages):
                for member in members:
                    self._member(archive, member, members)
                    # tarfile keeps every header that it has read, though a stream cannot go back to it.
                    # The list has been public for ever, and typeshed does not know it.
                    members.members.clear()  # type: ignore[attr-defined]
        except tarfile.TarError as cause:
            raise MalformedValue(f"what the server sent is no tar archive: {cause}") from cause

    def _member(self, archive: Archive, member: tarfile.TarInfo, members: tarfile.TarFile) -> None:
        self._watch()
        path = os.fsencode(member.name.removeprefix("./").rstrip("/"))
        if archive.tablespace is not None:
            path = b"pg_tblspc/%d/%b" % (archive.tablespace, path)
        if member.isdir():
            if path:
                self.directories.append((path, member.mode & 0o7777))
            return
        if not member.isfile():
            return  # a tablespace's link, which is made from what the server said at the start
        content = members.extractfile(member)
        assert content is not None, "a regular file has content"
        status = FileStatus(member.mode & 0o7777, max(0, int(member.mtime)))
        if path in (_LABEL, _MAP):
            if member.size > _LABEL_BYTES_MAX:
                raise MalformedValue(f"the server's {os.fsdecode(path)} has {member.size} bytes")
            self._labels[path] = _read(content, member.size)
        elif path == CONTROL_PATH:
            self._control = self._judge_control(_read(content, member.size)), status
        else:
            self._file(path, member.size, content, status)

    def _judge_control(self, content: bytes) -> bytes:
        """Return the control file if it is whole: a torn one would be found by the server that is restored.

        The server reads it while it may be written, and its manifest has the sum of what it sent.
        """
        try:
            found = parse_control_file(content)
        except MalformedValue as cause:
            raise BackupFailed(
                "the server sent a torn control file", detail=str(cause), hint="take it again"
            ) from cause
        if found.system_identifier != self._system_identifier:
            raise BackupFailed(
                "the server sent the files of another cluster",
                detail=f"They are of {found.system_identifier}, and not of {self._system_identifier}.",
                hint="name one server in [cluster] dsn",
            )
        return content

    def _file(self, path: bytes, size_bytes: int, content: IO[bytes], status: FileStatus) -> None:
        folder, slash, name = path.rpartition(b"/")
        found: list[FoundPage] = []
        if self._is_incremental and name.startswith(_PREFIX):
            path = folder + slash + name[len(_PREFIX) :]
            relation = parse_relation_path(path)
            if relation is not None and relation.fork == "vm":
                # Its blocks are found by summaries, which do not name a map's block when a bit is cleared.
                size_bytes = 0
                self._body.add_small(path, b"", status)
            else:
                size_bytes = self._changed(path, content, status, found)
        elif size_bytes <= SMALL_BYTES_MAX:
            data = _read(content, size_bytes)
            self._judge(path, 0, data, found)
            self._body.add_small(path, data, status)
        else:
            target = self._body.open_file(path)
            for offset in range(0, size_bytes, FRAME_CONTENT_BYTES):
                data = _read(content, min(FRAME_CONTENT_BYTES, size_bytes - offset))
                self._judge(path, offset, data, found)
                if data != _ZEROS[: len(data)]:
                    target.add(offset, data)
                self._watch()
            target.close(size_bytes, status)
            self._note_relation(path, size_bytes, target)
        if is_alien(path):
            self._tally.alien(path)
        self._tally.file_copied(size_bytes, found)
        self._tally.copied(size_bytes)

    def _changed(self, path: bytes, content: IO[bytes], status: FileStatus, found: list[FoundPage]) -> int:
        """Copy the server's own form of a file of which only some blocks changed; return the file's size."""
        head = read_incremental_head(
            lambda size: _read(content, size), blocks_max=self._rules.relation_segment_blocks
        )
        blocks, count, kept_blocks = head.blocks, len(head.blocks), head.kept_blocks
        size_bytes = head.file_blocks * PAGE_BYTES
        if count * PAGE_BYTES <= SMALL_BYTES_MAX:
            data = _read(content, count * PAGE_BYTES)
            self._judge_blocks(path, blocks, data, found)
            self._body.add_changed(
                path, data, runs_of(blocks), size_bytes, status, parent_bytes=kept_blocks * PAGE_BYTES
            )
            return size_bytes
        target = self._body.open_file(path)
        step = FRAME_CONTENT_BYTES // PAGE_BYTES
        for at in range(0, count, step):
            some = blocks[at : at + step]
            data = _read(content, len(some) * PAGE_BYTES)
            self._judge_blocks(path, some, data, found)
            target.add_runs(data, runs_of(some))
            self._watch()
        target.close(size_bytes, status, parent_bytes=kept_blocks * PAGE_BYTES)
        self._note_relation(path, size_bytes, target)
        return size_bytes

    def _judge(self, path: bytes, offset: int, data: bytes, found: list[FoundPage]) -> None:
        whole = len(data) // PAGE_BYTES
        self._judge_blocks(path, blocks_from(offset // PAGE_BYTES, whole), data[: whole * PAGE_BYTES], found)

    def _judge_blocks(self, path: bytes, blocks: Blocks, data: bytes, found: list[FoundPage]) -> None:
        """Look at pages; what the server wrote since the start may be torn, and replay mends it."""
        relation = parse_relation_path(path)
        if relation is None or not len(blocks):
            return
        first = relation.segment * self._rules.relation_segment_blocks
        bad = check_pages(memoryview(data), blocks + first, checksums=self._rules.checksums)
        if bad:
            # Asked after the page was read: an LSN beyond this is garbage.
            insert_lsn = self._rules.insert_lsn()
            found += [
                FoundPage(path, relation, int(blocks[page.index]) + first, page.reason)
                for page in bad
                if not is_excused(page, self._rules, insert_lsn)
            ]

    def _note_relation(self, path: bytes, size_bytes: int, writer: FileWriter) -> None:
        relation = parse_relation_path(path)
        if relation is not None and relation.fork == "main":
            self._tally.relation(path, size_bytes, writer.content_bytes, writer.stored_bytes)


def _read(content: IO[bytes], size_bytes: int) -> bytes:
    """Return exactly so many bytes.  Raises MalformedValue if the archive ends before."""
    data = content.read(size_bytes)
    if len(data) != size_bytes:
        raise MalformedValue("the server's archive ends inside a file")
    return data
