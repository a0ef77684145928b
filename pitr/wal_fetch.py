"""``restore_command``: hand PostgreSQL the file that it asks for, or an exit code that it cannot misread.

PostgreSQL starts this once per segment, so a file that lies in the spool is moved before anything else
is read, and what can open objects is imported only when nobody feeds the spool.  Exit codes:
``pitr.wal_path``.  A SIGTERM of the server ends the process by that signal, which PostgreSQL expects.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pitr.errors import PitrError
from pitr.fetch_desk import Desk, wait_for_answer
from pitr.wal_path import (
    EXIT_DELIVERED,
    Decision,
    Doubt,
    OutsidePath,
    ServeHistory,
    ServeSegment,
    decide,
    exit_code,
)

if TYPE_CHECKING:
    from pitr.wal_assembly import ReadWal
    from pitr.wal_plan_file import WalPlanHeader

_SEGMENT = re.compile(r"[0-9A-F]{24}")


@dataclass(frozen=True, slots=True)
class WalFetchRequest:
    """One call of ``restore_command``: ``name`` is %f, ``destination`` is %p.

    ``open_reader`` opens regions and keys by the plan's words; it is called only when no restore
    process feeds the spool.  It raises PitrError or StoreError.
    """

    name: str
    destination: Path
    plan_file: Path
    is_standby: bool
    open_reader: Callable[[WalPlanHeader], ReadWal]


@dataclass(frozen=True, slots=True)
class WalFetchOutcome:
    """What the process must end with; ``message`` is for the server's log, None if all is well."""

    exit_code: int
    message: str | None = None


def fetch_wal(request: WalFetchRequest) -> WalFetchOutcome:
    """Deliver the file, or say why not.  Raises nothing: what is unexpected is doubt, too."""
    decision: Decision
    try:
        # Only complete, checked files of the plan are in the spool.  A standby must not get the last
        # one if it is padded, which only the plan tells.
        if not request.is_standby and _SEGMENT.fullmatch(request.name) and _take_from_spool(request):
            return WalFetchOutcome(EXIT_DELIVERED)
        decision, is_delivered = _fetch(request)
    except Exception as cause:  # noqa: BLE001 - the top of the command; silence would be exit code 1
        decision, is_delivered = Doubt(_words(cause)), False
    code = exit_code(decision, is_delivered=is_delivered, is_standby=request.is_standby)
    if is_delivered:
        return WalFetchOutcome(code)
    reason = decision.reason if isinstance(decision, Doubt | OutsidePath) else "it could not be had"
    return WalFetchOutcome(code, f"{request.name}: {reason}")


def _fetch(request: WalFetchRequest) -> tuple[Decision, bool]:
    from pitr.wal_plan_file import read_header

    header = read_header(request.plan_file)
    decision = decide(request.name, header.path, is_standby=request.is_standby)
    if isinstance(decision, ServeHistory):
        _write(request.destination, decision.history.content)
        return decision, True
    if not isinstance(decision, ServeSegment):
        return decision, False
    if request.is_standby:
        return _fetch_alone(request, header, decision)
    note = wait_for_answer(_desk(request), request.name, lambda: _take_from_spool(request))
    if note is None:
        return _fetch_alone(request, header, decision)
    if note.exit_code == EXIT_DELIVERED:
        return decision, True
    # The plan names the segment, so whatever the note says, it is not the end of WAL.
    return Doubt(note.reason), False


def _fetch_alone(
    request: WalFetchRequest, header: WalPlanHeader, decision: ServeSegment
) -> tuple[Decision, bool]:
    """Open the segment's objects in this process: slow, and needs the identity."""
    from pitr.space_guard import SpaceRefused
    from pitr.wal_assembly import assemble_segment
    from pitr.wal_plan_file import find_segment

    segment = find_segment(request.plan_file, decision.segment)
    read = request.open_reader(header)
    staged = _desk(request).spool / f"{request.name}.{os.getpid()}"
    made = assemble_segment(segment, header.path, read, staged)
    if request.is_standby and made.is_padded:
        staged.unlink()
        return Doubt("the segment is not complete; a standby must not take its padding for WAL"), False
    try:
        _judge(request, header, decision, staged)
    except SpaceRefused as refused:
        staged.unlink()
        return Doubt(refused.words, ends_standby=not refused.is_absent), False
    _move(staged, request.destination)
    return decision, True


def _judge(request: WalFetchRequest, header: WalPlanHeader, decision: ServeSegment, staged: Path) -> None:
    """Hold WAL back that would make a tablespace in a place that is not this cluster's.

    The server runs us in its data directory, and what it replayed last lies in its pg_wal.
    """
    from pitr.space_guard import SpaceGuard
    from pitr.wal_plan_file import without_end

    path, folder = header.path, request.destination.absolute().parent
    # A standby goes on as long as there is WAL.
    replayed = without_end(header.replayed) if request.is_standby else header.replayed
    guard = SpaceGuard(folder.parent, path.segment_bytes, replayed)
    tail = None
    before = path.name_of(decision.segment.number(path.segment_bytes) - 1)
    if before is not None and guard.needs_tail(decision.segment, staged):
        with contextlib.suppress(FileNotFoundError):
            tail = guard.tail(folder / str(before))
    guard.check(decision.segment, staged, tail)


def _desk(request: WalFetchRequest) -> Desk:
    return Desk(request.plan_file.parent)


def _take_from_spool(request: WalFetchRequest) -> bool:
    """Move the file from the spool to its place; False if the spool has not got it."""
    try:
        _move(_desk(request).spool / request.name, request.destination)
    except FileNotFoundError:
        if _desk(request).spool.joinpath(request.name).exists():
            raise  # it is the destination's folder that is missing
        return False
    return True


def _move(source: Path, destination: Path) -> None:
    try:
        source.replace(destination)
    except OSError as refused:
        # pg_wal may lie on a filesystem of its own.  The server syncs what it was given.
        if refused.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, destination)
        source.unlink()


def _write(destination: Path, content: bytes) -> None:
    staged = destination.with_name(f"{destination.name}.{os.getpid()}")
    staged.write_bytes(content)
    staged.replace(destination)


def _words(cause: Exception) -> str:
    if isinstance(cause, PitrError):
        return f"{cause.message}: {cause.detail}" if cause.detail else cause.message
    return f"{type(cause).__name__}: {cause}"
