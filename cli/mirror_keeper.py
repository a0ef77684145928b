"""The daemon's part of a mirror: a thread that keeps all its pairs, and brings them to the regions.

What the mirror's cluster or the regions refuse is logged when it begins and when it ends; pairs wait in the
book meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cli.looking import in_words
from cli.snapshot import MirrorSnapshot
from pitr.errors import PitrError
from storage.store import ObjectConflict, StoreError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from pitr.events.fence import Fence
    from pitr.events.sync_book import SyncBook
    from pitr.events.sync_keeper import Polled, SyncKeeper
    from pitr.events.sync_store import SyncWriter

STOP_S: Final = 15.0
POLL_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class MirrorTools:
    """What the thread works with."""

    book: SyncBook
    keeper: SyncKeeper


@dataclass(frozen=True, slots=True)
class NewestFence:
    """The newest fence of a run, and how many were taken in it by then."""

    count: int
    fence: Fence


class FenceAfter:
    """Gives a fence that was surely taken after the last poll returned, by counting and no clock.

    The fence after the newest one may have been begun by then, so it does not count; the next one does.  Not
    by their numbers: those are a sequence's, which leaves many out when the server fails over.
    """

    def __init__(self, newest: Callable[[], NewestFence | None]) -> None:
        self._newest = newest
        self._at_return: int | None = None

    def take(self) -> Fence | None:
        newest = self._newest()
        if newest is None or newest.fence.unknown is not None or self._at_return is None:
            return None
        return newest.fence if newest.count >= self._at_return + 2 else None

    def poll_returned(self) -> None:
        newest = self._newest()
        self._at_return = 0 if newest is None else newest.count


class MirrorKeeper:
    """Polls pairs and ships them until stopped.

    ``open_tools`` is repeated until it does; ``newest_fence`` is the newest fence of this run, None before
    the first.
    """

    def __init__(
        self,
        open_tools: Callable[[], MirrorTools],
        writer: SyncWriter,
        newest_fence: Callable[[], NewestFence | None],
        store_every_s: float,
        log: FilteringBoundLogger,
        *,
        poll_every_s: float = POLL_EVERY_S,
    ) -> None:
        self._open_tools = open_tools
        self._tools: MirrorTools | None = None
        self._writer = writer
        self._fences = FenceAfter(newest_fence)
        self._store_every_s = store_every_s
        self._poll_every_s = poll_every_s
        self._log = log
        self._lock = threading.Lock()
        self._seen = MirrorSnapshot()
        self._told: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon, having put what can be put; a call that hangs is left behind."""
        self._stopping.set()
        if self._thread.is_alive():  # one that was never started has nothing to end
            self._thread.join(STOP_S)

    def snapshot(self) -> MirrorSnapshot:
        """Return how it is now."""
        with self._lock:
            seen = self._seen
        age_s = None if seen.polled_at is None else max(0.0, (_now() - seen.polled_at).total_seconds())
        return replace(seen, age_s=age_s)

    def _run(self) -> None:
        waited_s = self._store_every_s  # what an earlier run left goes first
        while not self._stopping.is_set():
            behind = self._poll()
            if waited_s >= self._store_every_s:
                self._ship()
                waited_s = 0.0
            if not behind:
                self._stopping.wait(self._poll_every_s)
                waited_s += self._poll_every_s
        self._ship()
        if self._tools is not None:
            self._tools.book.close()

    def _poll(self) -> int:
        """Poll once; return how much is still to be read, 0 where it failed."""
        try:
            if self._tools is None:
                self._tools = self._open_tools()
            polled = self._tools.keeper.poll(self._fences.take())
            self._fences.poll_returned()
            newest_ms = self._tools.book.position().newest_ms
        except Exception as failure:  # noqa: BLE001 — the top of a thread: it is told and tried again
            self._see(trouble=in_words(failure))
            self._tell("mirror", in_words(failure), "pairs of the mirror cannot be read")
            return 0
        self._note(polled, newest_ms)
        return polled.behind

    def _note(self, polled: Polled, newest_ms: int | None) -> None:
        with self._lock:
            before = self._seen
        self._see(
            polled_at=_now(),
            pairs=before.pairs + polled.pairs,
            behind=polled.behind,
            unreadable=before.unreadable + polled.unreadable,
            written_at=before.written_at if newest_ms is None else _moment(newest_ms),
            trouble=None,
        )
        self._tell("mirror", None, "pairs of the mirror are read again")
        missed = "records were deleted before they were read" if polled.has_missed else None
        self._tell("missed", missed, "pairs of the mirror are missing")

    def _ship(self) -> None:
        if self._tools is None:
            return
        try:
            while self._writer.ship(self._tools.book, _now()):
                with self._lock:
                    self._seen = replace(self._seen, stored=self._seen.stored + 1, store_error=None)
        except ObjectConflict:
            failure: str | None = "an object's name is taken; the newest is looked up again"
        except (StoreError, PitrError) as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 — the top of a thread: it is told and tried again
            failure = in_words(error)
        else:
            failure = None
        self._see(store_error=failure)
        self._tell(
            "store", failure, "pairs of the mirror cannot be put" if failure else "pairs are put again"
        )

    def _see(self, **fields: Any) -> None:
        with self._lock:
            self._seen = replace(self._seen, **fields)

    def _tell(self, about: str, reason: str | None, text: str) -> None:
        """Log once what changes."""
        before = self._told.get(about)
        if reason is None:
            if self._told.pop(about, None) is not None:
                self._log.info(text)
        elif reason != before:
            self._told[about] = reason
            self._log.warning(text, reason=reason)


def _moment(stamp_ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(stamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None  # a record's time can be any number


def _now() -> datetime:
    return datetime.now(UTC)
