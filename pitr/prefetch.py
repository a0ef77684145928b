"""The feeder: keeps the WAL segments that recovery will ask for next complete in a spool.

Runs in the restoring process, ahead of replay, within a bound of bytes.  What left the spool, replay has
taken.  A question comes only for what the spool has not got: the first file, one asked again, or after
a jump; then the window of what is kept ready moves there.  What cannot be had is doubt, with the reason.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType

from pitr.errors import PitrError
from pitr.fetch_socket import SOCKET_NAME, SPOOL_NAME, Answer, read_line, socket_address
from pitr.patience import with_patience
from pitr.postgres.server_user import ServerUser, hand_over
from pitr.wal_assembly import ReadWal, assemble_segment
from pitr.wal_path import ServeSegment, decide
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
_QUESTION_TIMEOUT_S = 10.0
_JOIN_TIMEOUT_S = 30.0


class Prefetcher:
    """Feeds the spool beside ``plan_file`` while it is open: a context manager."""

    def __init__(
        self,
        plan_file: Path,
        read: ReadWal,
        *,
        user: ServerUser | None,
        workers: int = WORKERS,
        ahead_bytes_max: int = AHEAD_BYTES_MAX,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._folder = plan_file.parent
        self._spool = self._folder / SPOOL_NAME
        self._segments = PlanSegments(plan_file)
        self._path = self._segments.header.path
        self._read = read
        self._user = user
        self._workers = workers
        self._patience_s = patience_s
        # At least two, or replay would wait for each segment.
        self._window = max(2, ahead_bytes_max // self._path.segment_bytes)
        self._stopping = threading.Event()
        self._questions = threading.BoundedSemaphore(_QUESTIONS_MAX)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._threads: list[threading.Thread] = []
        # The condition guards all that follows; segments are known by their numbers.
        self._changed = threading.Condition()
        self._wanted = self._segments.first
        self._flying: set[int] = set()
        self._spooled: set[int] = set()
        self._doubts: dict[int, str] = {}
        self._fetched_bytes = 0

    def __enter__(self) -> Prefetcher:
        self._spool.mkdir(mode=0o700, exist_ok=True)
        for leftover in self._spool.iterdir():
            leftover.unlink()
        hand_over(self._spool, self._user)
        (self._folder / SOCKET_NAME).unlink(missing_ok=True)
        with socket_address(self._folder) as address:
            self._listener.bind(address)
        hand_over(self._folder / SOCKET_NAME, self._user)
        self._listener.listen(_QUESTIONS_MAX)
        for number, target in enumerate([self._listen, *([self._run_ahead] * self._workers)]):
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
        # Wakes the thread that waits for the next question.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT_S)
        self._listener.close()
        (self._folder / SOCKET_NAME).unlink(missing_ok=True)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Return why segments cannot be had, by segment."""
        with self._changed:
            return tuple(self._doubts[number] for number in sorted(self._doubts))

    @property
    def fetched_bytes(self) -> int:
        """Return the bytes of WAL that went into the spool."""
        with self._changed:
            return self._fetched_bytes

    def _run_ahead(self) -> None:
        """Fetch what will be asked for next, as long as the window has room: one worker's life."""
        while (number := self._next_number()) is not None:
            try:
                self._fetch(number)
            except (PitrError, StoreError, OSError) as cause:
                self._doubt(number, cause)

    def _next_number(self) -> int | None:
        """Return the next segment to fetch, marked as flying; None when the feeder closes."""
        with self._changed:
            while not self._stopping.is_set():
                self._look()
                number = self._first_absent()
                if number is not None:
                    self._flying.add(number)
                    return number
                self._changed.wait(_LOOK_S)
        return None

    def _look(self) -> None:
        """Notice what replay has taken."""
        taken = {number for number in self._spooled if not self._file(number).exists()}
        if taken:
            self._spooled -= taken
            self._wanted = max(self._wanted, max(taken) + 1)

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

    def _fetch(self, number: int) -> None:
        """Put a segment that is marked as flying into the spool.

        Raises PitrError, StoreError or OSError; StoreUnavailable only after PATIENCE_S of trying.
        """
        part = self._spool / f"{self._segments.name(number)}.part"
        try:
            made = with_patience(
                lambda: assemble_segment(self._segments.get(number), self._path, self._read, part),
                patience_s=self._patience_s,
                stopping=self._stopping,
            )
            hand_over(part, self._user)
            with self._changed:
                part.rename(self._file(number))
                self._spooled.add(number)
                self._doubts.pop(number, None)
                self._fetched_bytes += made.wal_bytes
        finally:
            with self._changed:
                self._flying.discard(number)
                self._changed.notify_all()

    def _doubt(self, number: int, cause: Exception) -> None:
        with self._changed:
            self._doubts[number] = _words(cause)
            self._changed.notify_all()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._questions.acquire(blocking=False):
                # PostgreSQL asks for one file at a time; whoever asks for so many is not PostgreSQL.
                connection.close()
                continue
            threading.Thread(
                target=self._answer, args=(connection,), name="wal-question", daemon=True
            ).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_QUESTION_TIMEOUT_S)
                name = read_line(connection).decode("ascii", "replace").strip()
                connection.sendall(self._find(name).encode())
        finally:
            self._questions.release()

    def _find(self, name: str) -> Answer:
        """Move the window to the segment and return once it is in the spool, or cannot be had."""
        decision = decide(name, self._path)
        if not isinstance(decision, ServeSegment):
            return Answer(f"{name!r} is no segment of the plan")
        number = decision.segment.number(self._path.segment_bytes)
        with self._changed:
            self._look()
            self._wanted = number
            self._drop_outside_window()
            while number in self._flying and not self._stopping.is_set():
                self._changed.wait(1.0)
            if number in self._spooled:
                return Answer(None)
            self._flying.add(number)
        try:
            # Also where a worker met doubt before: that may have been long ago.
            self._fetch(number)
        except (PitrError, StoreError, OSError) as cause:
            self._doubt(number, cause)
            return Answer(_words(cause))
        return Answer(None)

    def _drop_outside_window(self) -> None:
        for number in list(self._spooled):
            if not self._wanted <= number < self._wanted + self._window:
                self._file(number).unlink(missing_ok=True)
                self._spooled.discard(number)


def _words(cause: Exception) -> str:
    detail = cause.detail if isinstance(cause, PitrError) else None
    return f"{cause}: {detail}" if detail else f"{cause}"
