"""The feeder: keeps the WAL segments that recovery will ask for next complete in a spool.

Runs in the restoring process, ahead of replay, within a bound of bytes.  What left the spool, replay has
taken.  A question comes only for what the spool has not got: the first file, one asked again, or after
a jump; then the window of what is kept ready moves there.  What cannot be had is doubt, with the reason;
so is WAL that would make a tablespace in a directory which is not this cluster's (``pitr.space_guard``).
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

from pitr.errors import PitrError
from pitr.fetch_desk import Desk, Note
from pitr.layout import SegmentKey
from pitr.patience import with_patience
from pitr.postgres.server_user import ServerUser, hand_over
from pitr.space_guard import SpaceGuard, SpaceRefused
from pitr.wal.segment import SegmentName
from pitr.wal_assembly import ReadWal, SegmentFile, assemble_segment
from pitr.wal_deliveries import Delivery, DeliveryNotes, notes_file
from pitr.wal_path import (
    EXIT_DOUBT,
    EXIT_OUTSIDE_PATH,
    OutsidePath,
    ServeHistory,
    ServeSegment,
    WalPath,
    decide,
)
from pitr.wal_plan_file import PlanSegments
from storage.store import StoreError

WORKERS = 3
AHEAD_BYTES_MAX = 256 * 1024 * 1024
# How long an unreachable store is asked again before that is doubt: a short outage must not cost the
# whole recovery, and a long one must be told.
PATIENCE_S = 60.0
# How soon an emptied spool is noticed; replay of one segment takes longer.
_LOOK_S = 0.02
_QUESTIONS_MAX = 4
_JOIN_TIMEOUT_S = 30.0


class _Behind(Exception):
    """A segment cannot be judged now: recovery comes from the one before it, which is not there."""


class Prefetcher:
    """Feeds the spool beside ``plan_file`` while it is open: a context manager.

    ``data_dir`` is the cluster's that recovers; ``takes_spaces``: it may have empty directories of this host
    for tablespaces that WAL makes.
    """

    def __init__(
        self,
        plan_file: Path,
        read: ReadWal,
        *,
        data_dir: Path,
        takes_spaces: bool = True,
        user: ServerUser | None,
        workers: int = WORKERS,
        ahead_bytes_max: int = AHEAD_BYTES_MAX,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._desk = Desk(plan_file.parent)
        self._spool = self._desk.spool
        self._segments = PlanSegments(plan_file)
        self._path = self._segments.header.path
        self._read = read
        replayed = self._segments.header.replayed
        self._guard = SpaceGuard(data_dir, self._path.segment_bytes, replayed, takes_spaces=takes_spaces)
        self._user = user
        self._workers = workers
        self._patience_s = patience_s
        # At least two, or replay would wait for each segment.
        self._window = max(2, ahead_bytes_max // self._path.segment_bytes)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        # The condition guards all that follows; segments are known by their numbers.
        self._changed = threading.Condition()
        self._wanted = self._segments.first
        self._flying: set[int] = set()
        self._spooled: set[int] = set()
        self._doubts: dict[int, str] = {}
        self._refusals: dict[int, SpaceRefused] = {}
        # What is needed of a segment to judge the next one, and those that were judged without.
        self._tails: dict[int, bytes] = {}
        self._heads: set[int] = set()
        self._fetched_bytes = 0
        self.notes: Final = DeliveryNotes(notes_file(plan_file))

    def __enter__(self) -> Prefetcher:
        for folder in (self._spool, self._desk.ask, self._desk.answers):
            folder.mkdir(mode=0o700, exist_ok=True)
            for leftover in folder.iterdir():
                leftover.unlink()
            hand_over(folder, self._user)
        self._desk.feeder.write_text(f"{os.getpid()}\n", encoding="ascii")
        self._desk.feeder.chmod(0o644)
        for number, target in enumerate([self._attend, *([self._run_ahead] * self._workers)]):
            thread = threading.Thread(target=target, name=f"wal-feeder-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        # Whoever asks from now on finds nobody, and does not wait.
        self._desk.feeder.unlink(missing_ok=True)
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT_S)
        self.notes.close()

    @property
    def path(self) -> WalPath:
        """Return the way whose WAL is delivered."""
        return self._path

    @property
    def doubts(self) -> tuple[str, ...]:
        """Return why segments cannot be had, by segment."""
        with self._changed:
            return tuple(self._doubts[number] for number in sorted(self._doubts))

    @property
    def refusal(self) -> SpaceRefused | None:
        """Return why recovery may not have the segment that it wants next, if that is a tablespace's."""
        with self._changed:
            return self._refusals.get(self._wanted)

    @property
    def fetched_bytes(self) -> int:
        """Return the bytes of WAL that went into the spool."""
        with self._changed:
            return self._fetched_bytes

    def _run_ahead(self) -> None:
        """Fetch what will be asked for next, as long as the window has room: one worker's life."""
        while (number := self._next_number()) is not None:
            self._fetch(number)

    def _next_number(self) -> int | None:
        """Return the next segment to fetch, marked as flying; None when the feeder closes."""
        with self._changed:
            while not self._stopping.is_set():
                number = self._first_absent()
                if number is not None:
                    self._flying.add(number)
                    return number
                # Whoever attends looks at the spool for all workers.
                self._changed.wait(1.0)
        return None

    def _look(self) -> None:
        """Notice what replay has taken."""
        if not self._spooled:
            return
        there = {entry.name for entry in self._spool.iterdir()}
        taken = {number for number in self._spooled if str(self._segments.name(number)) not in there}
        if taken:
            self._spooled -= taken
            self._wanted = max(self._wanted, max(taken) + 1)
            self._changed.notify_all()

    def _first_absent(self) -> int | None:
        for number in range(self._wanted, min(self._wanted + self._window, self._segments.last + 1)):
            # Behind a segment that cannot be had, nothing is of use.
            if number in self._doubts:
                return None
            if number not in self._flying and number not in self._spooled:
                return number
        return None

    def _file(self, number: int) -> Path:
        return self._spool / str(self._segments.name(number))

    def _fetch(self, number: int) -> str | None:
        """Put a segment that is marked as flying into the spool; return why it cannot be had, else None.

        An unreachable store is asked again for PATIENCE_S.
        """
        part = self._spool / f"{self._segments.name(number)}.part"
        doubt: str | None = "the feeder failed"
        refusal: SpaceRefused | None = None
        is_known = True
        try:
            made = with_patience(
                lambda: assemble_segment(self._segments.get(number), self._path, self._read, part),
                patience_s=self._patience_s,
                stopping=self._stopping,
            )
            self._judge(number, part)
            hand_over(part, self._user)
            _sync(part)
            # Before the name is there: what recovery takes is always noted.
            self.notes.add(_delivery(self._segments.name(number), made))
            self._deliver(number, part, made.wal_bytes)
            doubt = None
        except _Behind:
            doubt, is_known = "recovery went elsewhere meanwhile", False
        except SpaceRefused as cause:
            doubt, refusal = cause.words, cause
        except (PitrError, StoreError, OSError) as cause:
            doubt = _words(cause)
        except Exception as cause:  # noqa: BLE001 - a thread's work: else recovery would wait for its answer
            doubt = f"the feeder failed: {type(cause).__name__}: {cause}"
        finally:
            # All at once, or another worker would take the number for one that nobody has tried.
            with self._changed:
                self._flying.discard(number)
                self._doubts.pop(number, None)
                self._refusals.pop(number, None)
                if doubt is not None and is_known:
                    self._doubts[number] = doubt
                if refusal is not None:
                    self._refusals[number] = refusal
                self._changed.notify_all()
        return doubt

    def _judge(self, number: int, part: Path) -> None:
        """Hold a segment back that replay must not have.  Raises SpaceRefused, _Behind."""
        name = self._segments.name(number)
        needs_tail = number > self._segments.first and self._guard.needs_tail(name, part)
        before = self._tail_before(number) if needs_tail else None
        self._guard.check(name, part, before)
        tail = self._guard.tail(part)
        with self._changed:
            self._tails[number] = tail
            near = range(self._wanted - 1, self._wanted + self._window + self._workers)
            self._tails = {one: kept for one, kept in self._tails.items() if one in near or one == number}
            self._heads.discard(number)
            if needs_tail and before is None:
                self._heads.add(number)

    def _tail_before(self, number: int) -> bytes | None:
        """Return the tail of the segment before; None if recovery begins after that.  Raises _Behind."""
        with self._changed:
            while number - 1 not in self._tails:
                if number <= self._wanted:
                    return None
                if number - 1 not in self._flying or self._stopping.is_set():
                    raise _Behind
                self._changed.wait(1.0)
            return self._tails[number - 1]

    def _deliver(self, number: int, part: Path, wal_bytes: int) -> None:
        """Give a segment its name.  Raises _Behind if recovery went back before it meanwhile."""
        with self._changed:
            if number in self._heads and number > self._wanted:
                raise _Behind
            part.rename(self._file(number))
            self._spooled.add(number)
            self._fetched_bytes += wal_bytes

    def _attend(self) -> None:
        """Look at the spool and for questions, and answer each in a thread of its own."""
        asked: dict[str, threading.Thread] = {}
        while not self._stopping.wait(_LOOK_S):
            with self._changed:
                self._look()
            asked = {name: thread for name, thread in asked.items() if thread.is_alive()}
            for entry in self._desk.ask.iterdir():
                # PostgreSQL asks for one file at a time; the rest waits.
                if entry.name not in asked and len(asked) < _QUESTIONS_MAX:
                    thread = threading.Thread(
                        target=self._answer, args=(entry,), name="wal-question", daemon=True
                    )
                    asked[entry.name] = thread
                    thread.start()

    def _answer(self, question: Path) -> None:
        # A full disk here is no answer, and no answer is doubt.
        with contextlib.suppress(OSError):
            note = self._find(question)
            if note is not None:
                self._desk.put_note(question.name, note)
            question.unlink(missing_ok=True)

    def _find(self, question: Path) -> Note | None:
        """Put the file into the spool and return None, or say why not."""
        name = question.name
        decision = decide(name, self._path)
        if isinstance(decision, ServeSegment):
            return self._find_segment(decision.segment.number(self._path.segment_bytes), question)
        if isinstance(decision, ServeHistory):
            part = self._spool / f"{name}.part"
            part.write_bytes(decision.history.content)
            hand_over(part, self._user)
            part.rename(self._spool / name)
            return None
        if isinstance(decision, OutsidePath):
            return Note(EXIT_OUTSIDE_PATH, decision.reason)
        return Note(EXIT_DOUBT, decision.reason)

    def _find_segment(self, number: int, question: Path) -> Note | None:
        """Move the window to the segment and return once it is in the spool, or cannot be had."""
        with self._changed:
            while number in self._flying and not self._stopping.is_set():
                self._changed.wait(1.0)
            self._look()
            # Whoever takes a file withdraws the question before: then it was answered meanwhile.
            if number in self._spooled or not question.exists():
                return None
            self._wanted = number
            self._drop_outside_window()
            self._flying.add(number)
            self._changed.notify_all()
        # Also where a worker met doubt before: that may have been long ago.
        doubt = self._fetch(number)
        return None if doubt is None else Note(EXIT_DOUBT, doubt)

    def _drop_outside_window(self) -> None:
        for number in list(self._spooled):
            is_near = self._wanted <= number < self._wanted + self._window
            # Recovery now comes from before it, and it was judged as if that were not so.
            if not is_near or (number in self._heads and number > self._wanted):
                self._file(number).unlink(missing_ok=True)
                self._spooled.discard(number)


def _delivery(name: SegmentName, made: SegmentFile) -> Delivery:
    whole = sum(isinstance(source.key, SegmentKey) for source in made.sources)
    return Delivery(name, made.wal_bytes, made.sha256.hex(), whole, len(made.sources) - whole)


def _sync(file: Path) -> None:
    """Write the file to disk here, ahead of replay: the server syncs each segment before it reads it.

    Reference: PostgreSQL src/backend/access/transam/xlogarchive.c (KeepFileRestoredFromArchive).
    """
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _words(cause: Exception) -> str:
    detail = cause.detail if isinstance(cause, PitrError) else None
    return f"{cause}: {detail}" if detail else f"{cause}"
