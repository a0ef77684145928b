"""Repeating what must succeed while the daemon runs: puts, spooling, the first look at the store.

WAL that cannot be shipped is not lost: the slot keeps it.  So there is no last attempt, only pauses
that grow to a limit; each pause ends at once when the daemon gives up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

from pitr.archive_values import ArchiveEvent, ArchiveEventKind
from pitr.spool import SpoolFailed, SpoolFull
from storage.store import ObjectConflict, StoreError

_FIRST_PAUSE_S = 0.1

_T = TypeVar("_T")


class GivenUp(Exception):
    """The daemon ends: what was being tried is left undone."""


class Retry:
    """Repeats calls until they succeed or ``give_up`` is called.  Thread-safe."""

    def __init__(
        self,
        on_event: Callable[[ArchiveEvent], None],
        *,
        random: Callable[[int], bytes],
        pause_s_max: float,
    ) -> None:
        self._on_event: Final = on_event
        self._random: Final = random
        self._pause_s_max: Final = pause_s_max
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._failing: dict[str, str] = {}

    @property
    def is_given_up(self) -> bool:
        """Whether nothing is to be repeated any more."""
        return self._given_up.is_set()

    @property
    def last_error(self) -> str | None:
        """The words of a failure that lasts; None if nothing fails now."""
        with self._lock:
            return next(iter(self._failing.values()), None)

    def give_up(self) -> None:
        """End all pauses; calls under way end as they may."""
        self._given_up.set()

    def until_done(self, what: str, call: Callable[[], _T]) -> _T:
        """Return what ``call`` returns, repeating it after errors of the store or the spool.

        Raises GivenUp; ObjectConflict, which no repetition mends.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            if self._given_up.is_set():
                raise GivenUp(what)
            try:
                result = call()
            except ObjectConflict:
                raise
            except (StoreError, SpoolFull, SpoolFailed) as failure:
                self._note(what, failure)
            else:
                self._note(what, None)
                return result
            self.pause(pause_s)
            pause_s = min(pause_s * 2, self._pause_s_max)

    def once(self, what: str, call: Callable[[], object]) -> bool:
        """Call once; False after an error of the store or the spool.  Raises ObjectConflict."""
        try:
            call()
        except ObjectConflict:
            raise
        except (StoreError, SpoolFull, SpoolFailed) as failure:
            self._note(what, failure)
            return False
        self._note(what, None)
        return True

    def pause(self, longest_s: float) -> None:
        """Wait for half to all of ``longest_s``, so that many daemons do not come back at once."""
        self._given_up.wait(longest_s * (0.5 + self._random(1)[0] / 512))

    def _note(self, what: str, failure: Exception | None) -> None:
        """Tell the first failure of each thing, and its end."""
        with self._lock:
            was_failing = what in self._failing
            if failure is None:
                self._failing.pop(what, None)
            else:
                self._failing[what] = f"{what}: {failure}"
        if failure is not None and not was_failing:
            is_spool = isinstance(failure, (SpoolFull, SpoolFailed))
            kind = ArchiveEventKind.SPOOL_FULL if is_spool else ArchiveEventKind.STORE_FAILED
            self._on_event(ArchiveEvent(kind, f"{what} failed and is repeated: {failure}"))
        elif failure is None and was_failing:
            self._on_event(ArchiveEvent(ArchiveEventKind.STORE_RECOVERED, f"{what} works again"))
