"""Copies one file of the server into a part: all of it, or what changed since the parent backup.

What an interrupted attempt has stored of a file is taken over if every byte is the same; for that the file is
read in any case.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

from pitr.backup_changes import ChangeFinder, FilePlan, LeftEmpty, PagesSince
from pitr.backup_frames import FrameContent, changed_frames, frames_of, small_content, whole_frames
from pitr.backup_parent import NoteWriter
from pitr.backup_resume import PutOff, Resume
from pitr.backup_reuse import Match, compare_frames
from pitr.backup_tally import Tally
from pitr.errors import BackupFailed
from pitr.pipeline.pack_contents import PackedFile
from pitr.pipeline.pack_writer import SMALL_BYTES_MAX, FileStatus, FileWriter, PartWriter
from pitr.postgres.basebackup import FileReader, FoundPage, OpenedFile
from pitr.postgres.datadir import DataFile
from pitr.postgres.page import PAGE_BYTES
from pitr.postgres.summaries import ChangedPart


@dataclass(frozen=True, slots=True)
class FileRest:
    """A file that is being read, and what comes behind the frames that are stored of it."""

    file: DataFile
    opened: OpenedFile
    frames: Iterator[FrameContent]


class FileCopier:
    """Copies files.  Thread-safe, as each thread brings its own reader and writer.

    ``changes`` None copies all of every file; ``note`` is told each relation file that was copied.
    ``resume`` knows what an interrupted attempt has stored.
    """

    def __init__(
        self,
        tally: Tally,
        stop: threading.Event,
        *,
        changes: ChangeFinder | None = None,
        note: NoteWriter | None = None,
        resume: Resume | None = None,
    ) -> None:
        self._tally = tally
        self._stop = stop
        self._changes = changes
        self._note = note
        self._resume = resume

    def copy(self, file: DataFile, reader: FileReader, writer: PartWriter) -> None:
        """Copy a file, or take it over; one that was dropped meanwhile is left out."""
        known = () if self._resume is None else self._resume.known(file.path)
        if not known or not self._take_over(file, reader, known):
            self.copy_anew(file, reader, writer)

    def copy_anew(self, file: DataFile, reader: FileReader, writer: PartWriter) -> None:
        """Copy a file, whatever is stored of it."""
        copied_bytes = 0
        with reader.open(file) as opened:
            # None: dropped meanwhile, and replay drops it again.
            if opened is not None:
                plan = self._plan(file, opened)
                if isinstance(plan, LeftEmpty):
                    writer.add_small(file.path, b"", FileStatus(opened.mode, opened.mtime))
                elif plan is not None:
                    copied_bytes = self._copy_changed(file, opened, writer, plan)
                elif opened.size_bytes <= SMALL_BYTES_MAX:
                    copied_bytes = self._copy_small(file, opened, writer)
                else:
                    copied_bytes = self._copy_large(file, opened, writer)
                self._end(file, copied_bytes, opened.found)
        # What the listing promised is done, though the file has grown, shrunk or gone since.
        self._tally.copied(file.size_bytes - copied_bytes)

    @contextmanager
    def rest_of(self, put_off: PutOff, reader: FileReader) -> Iterator[FileRest | None]:
        """Read again a file that goes on where an earlier attempt ended; None if it does not, any more."""
        file, stored = put_off.file, chain.from_iterable(piece.frames for piece in put_off.known)
        with reader.open(file) as opened:
            if opened is None:
                yield None
                return
            frames = self._going(whole_frames(opened))
            assert self._resume is not None
            found = compare_frames(stored, frames, self._resume.mac)
            if found.match is not Match.BEGINS or found.next_frame is None:
                yield None
                return
            yield FileRest(file, opened, chain((found.next_frame,), frames))

    def end_rest(self, rest: FileRest, target: FileWriter) -> None:
        """Copy the rest behind what ``target`` has adopted, and close it."""
        opened = rest.opened
        for frame in rest.frames:
            target.add_runs(frame.content, frame.runs)
        target.close(opened.size_bytes, FileStatus(opened.mode, opened.mtime))
        self._note_relation(rest.file, opened.size_bytes, target.content_bytes, target.stored_bytes)
        self._end(rest.file, opened.size_bytes, opened.found)
        self._tally.copied(rest.file.size_bytes)

    def _take_over(self, file: DataFile, reader: FileReader, known: Sequence[PackedFile]) -> bool:
        """Tell whether the file is as it was stored, and say so to who lists it then."""
        resume = self._resume
        assert resume is not None
        with reader.open(file) as opened:
            plan = None if opened is None else self._plan(file, opened)
            if opened is None or isinstance(plan, LeftEmpty):
                return False
            stored = chain.from_iterable(piece.frames for piece in known)
            found = compare_frames(stored, self._going(frames_of(opened, plan)), resume.mac).match
            if found is Match.BEGINS and plan is None:
                return resume.put_off(PutOff(file, known))
            if found is not Match.SAME:
                return False
            size_bytes, status = opened.size_bytes, FileStatus(opened.mode, opened.mtime)
            kept_bytes = None if plan is None else min(_kept_bytes(plan, size_bytes), size_bytes)
            resume.take(file.path, known, size_bytes, status, kept_bytes)
            content_bytes = sum(piece.content_bytes for piece in known)
            stored_bytes = sum(frame.stored_bytes for piece in known for frame in piece.frames)
            # Nothing is known of what shared a frame with others, as when it is copied.
            if stored_bytes:
                self._note_relation(file, size_bytes, content_bytes, stored_bytes)
            self._end(file, size_bytes, opened.found)
        self._tally.copied(file.size_bytes)
        return True

    def _end(self, file: DataFile, size_bytes: int, found: Sequence[FoundPage]) -> None:
        self._tally.file_copied(size_bytes, found)
        if self._note is not None and file.relation is not None:
            self._note.add(file.path)

    def _plan(self, file: DataFile, opened: OpenedFile) -> FilePlan:
        if self._changes is None:
            return None
        return self._changes.plan(replace(file, size_bytes=opened.size_bytes))

    def _copy_changed(
        self, file: DataFile, opened: OpenedFile, writer: PartWriter, plan: ChangedPart | PagesSince
    ) -> int:
        """Copy the pages that changed; the parent backup has the rest."""
        kept_bytes = _kept_bytes(plan, opened.size_bytes)
        frames = self._going(changed_frames(opened, plan))
        # It may be all there is, and then it shares a frame with others.
        first, second = next(frames, None), next(frames, None)
        size_bytes, status = opened.size_bytes, FileStatus(opened.mode, opened.mtime)
        if second is None and (first is None or len(first.content) <= SMALL_BYTES_MAX):
            content, runs = (b"", ()) if first is None else (first.content, first.runs)
            kept_bytes = min(kept_bytes, size_bytes)
            writer.add_changed(file.path, content, runs, size_bytes, status, parent_bytes=kept_bytes)
        else:
            target = writer.open_file(file.path)
            for frame in chain((each for each in (first, second) if each is not None), frames):
                target.add_runs(frame.content, frame.runs)
            size_bytes = opened.size_bytes
            target.close(size_bytes, status, parent_bytes=min(kept_bytes, size_bytes))
            self._note_relation(file, size_bytes, target.content_bytes, target.stored_bytes)
        self._tally.copied(size_bytes)
        return size_bytes

    def _copy_small(self, file: DataFile, opened: OpenedFile, writer: PartWriter) -> int:
        content = small_content(opened)
        writer.add_small(file.path, content, FileStatus(opened.mode, opened.mtime))
        self._tally.copied(len(content))
        return len(content)

    def _copy_large(self, file: DataFile, opened: OpenedFile, writer: PartWriter) -> int:
        target = writer.open_file(file.path)
        for frame in self._going(whole_frames(opened, self._tally.copied)):
            target.add_runs(frame.content, frame.runs)
        target.close(opened.size_bytes, FileStatus(opened.mode, opened.mtime))
        self._note_relation(file, opened.size_bytes, target.content_bytes, target.stored_bytes)
        return opened.size_bytes

    def _going(self, frames: Iterator[FrameContent]) -> Iterator[FrameContent]:
        """Yield the frames until the backup is being stopped."""
        for frame in frames:
            if self._stop.is_set():
                raise BackupFailed("the base backup is being stopped")
            yield frame

    def _note_relation(self, file: DataFile, size_bytes: int, content_bytes: int, stored_bytes: int) -> None:
        if file.relation is not None and file.relation.fork == "main":
            self._tally.relation(file.path, size_bytes, content_bytes, stored_bytes)


def _kept_bytes(plan: ChangedPart | PagesSince, size_bytes: int) -> int:
    """Return up to where the parent backup has what did not change."""
    return plan.parent_blocks * PAGE_BYTES if isinstance(plan, ChangedPart) else size_bytes
