"""Lists what a backup takes over of interrupted attempts, after all files have been compared.

The packs of an earlier part are listed in a new index of the same part, sealed with the new key.  A file that
was begun there and not ended goes on behind its last pack.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from pitr.backup_file_copy import FileCopier, FileRest
from pitr.backup_resume import PutOff, Resume, TakenPiece
from pitr.catalogue.backup_record import StoredObject
from pitr.errors import BackupFailed
from pitr.pipeline.pack_writer import FileWriter, PartWriter
from pitr.postgres.basebackup import FileReader


def adopt_packs(
    resume: Resume,
    copier: FileCopier,
    reader: FileReader,
    part: Callable[[int, int], PartWriter],
    watch: Callable[[], None],
) -> list[StoredObject]:
    """List the files that are as they are stored; return the packs that they lie in.

    ``part`` makes the writer of a part, given its number and that of its first new pack.  ``watch`` is called
    often, and ends it by raising.
    """
    adopted: list[StoredObject] = []
    files = 0
    for number in resume.parts():
        with ExitStack() as stack:
            adopter = _Adopter(resume, copier, reader, part(number, resume.next_pack(number)), stack)
            adopted += adopter.run(number, watch)
            files += adopter.files
    if files != resume.taken_files:
        # A file would be missing in the backup, and nobody after us would see it.
        raise BackupFailed(f"{files} files were taken over, and {resume.taken_files} were to be")
    return adopted


class _Adopter:
    """One part of an earlier attempt."""

    def __init__(
        self,
        resume: Resume,
        copier: FileCopier,
        reader: FileReader,
        writer: PartWriter,
        stack: ExitStack,
    ) -> None:
        self._resume = resume
        self._copier = copier
        self._reader = reader
        self._writer = writer
        self._stack = stack
        self._open: FileWriter | None = None
        self._rest: FileRest | None = None
        # What was put off, and is not as it was any more.
        self._given_up: dict[bytes, PutOff] = {}
        self.files = 0

    def run(self, part: int, watch: Callable[[], None]) -> list[StoredObject]:
        """Write the part; return the packs that are used."""
        adopted = []
        for pack in self._resume.packs(part):
            watch()
            self._writer.end_pack()
            taken = [piece for piece in pack.pieces if self._take(piece)]
            if not taken:
                continue
            self._writer.adopt(pack.number, pack.places)
            adopted.append(pack.stored)
            if taken[-1].is_last and self._rest is not None:
                self._end_rest()
        for put_off in self._given_up.values():
            watch()
            self._copier.copy_anew(put_off.file, self._reader, self._writer)
        self._writer.finish()
        return adopted

    def _take(self, piece: TakenPiece) -> bool:
        """List what of a file lies in a pack; tell whether anything does."""
        file = piece.file
        if file.size_bytes is None and not self._goes_on(file.path):
            return False
        target: FileWriter | None = self._open or self._writer.open_file(file.path)
        assert target is not None
        target.adopt(piece.content.frames)
        if piece.is_last and file.size_bytes is not None:
            target.close(file.size_bytes, file.status, parent_bytes=file.parent_bytes)
            self.files += 1
            target = None
        self._open = target
        return True

    def _goes_on(self, path: bytes) -> bool:
        """Open a file whose rest is to be copied, and tell whether it still begins as it is stored."""
        if path not in self._given_up and (self._rest is None or self._rest.file.path != path):
            put_off = self._resume.rest(path)
            self._rest = self._stack.enter_context(self._copier.rest_of(put_off, self._reader))
            if self._rest is None:
                self._given_up[path] = put_off
        return path not in self._given_up

    def _end_rest(self) -> None:
        assert self._rest is not None
        assert self._open is not None
        self._copier.end_rest(self._rest, self._open)
        self._rest = self._open = None
        self._stack.close()
