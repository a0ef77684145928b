"""Keeps what an acknowledgement is worth: looks who waits, and goes down and up the ladder by policy.

A step down is noted as a signed event, and in a file of the state directory, before it is taken: a daemon
that starts again must know that the newest WAL may be in fewer regions than its configuration says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from cli.looking import look_and_go_on
from pitr.archive_values import Acknowledgement, ArchiveStatus
from pitr.catalogue.event_record import EventKind, Happening
from pitr.errors import ServerRefused, ServerUnavailable
from pitr.event_log import NotesFailed
from pitr.protection import Ladder, Level, Observation, ProtectionPolicy
from pitr.quorum import WriteQuorum
from storage.synced_file import replace_synced

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from storage.regions import RegionStatus

LOOK_EVERY_S: Final = 1.0
STOP_S: Final = 10.0
# A region's queue is never quite empty while WAL flows; what is younger is on its way.
_ON_ITS_WAY_S: Final = 5.0
_MARK_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class SyncLook:
    """What the server says: whether it counts us as synchronous, who waits, whether we could release them."""

    is_synchronous: bool
    commits_waiting: int
    can_release: bool


class Undone(StrEnum):
    """What came of undoing a release; the texts are for a person."""

    NOTHING = "commits had not been released by this daemon"
    HELD = "commits wait again as before"
    CHANGED = "synchronous_standby_names was changed by somebody else meanwhile: it is left so"
    ELSEWHERE = "commits were released on another server, and are not held again there"


class SyncServer(Protocol):
    """The server, as far as it waits for us.  All raise ServerUnavailable or ServerRefused."""

    @property
    def has_released(self) -> bool:
        """Whether a release, perhaps of an earlier run, is not undone yet.  Raises nothing."""

    def look(self) -> SyncLook: ...

    def release(self) -> Undone:
        """Let commits wait for us no more, until ``hold_again``; of others is asked what still is.

        After ServerUnavailable it may have been done.  May be repeated: what came of an earlier release.
        """

    def hold_again(self) -> Undone:
        """Let commits wait again exactly as before the release, unless the setting is not as we left it."""


class Store(Protocol):
    """The regions as one store; see ``storage.replicated``."""

    def require(self, quorum: int) -> None: ...

    def status(self) -> tuple[RegionStatus, ...]: ...


class Archiver(Protocol):
    """See ``pitr.archive``."""

    def acknowledge(self, how: Acknowledgement) -> None: ...

    def status(self) -> ArchiveStatus: ...


class ProtectionMark:
    """The level that was in force, in a file that is there only while it is lowered."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def read(self) -> Level:
        """Return the level; a mark that cannot be read stands for the least that regions may hold."""
        try:
            with self._path.open("rb") as file:
                fields = json.loads(file.read(_MARK_BYTES_MAX))
            return Level(fields["level"])
        except FileNotFoundError:
            return Level.QUORUM
        except (OSError, ValueError, KeyError, TypeError):
            return Level.ASYNCHRONOUS

    def write(self, level: Level) -> None:
        """Return once it is on disk.  Raises OSError."""
        replace_synced(self._path, json.dumps({"level": int(level), "name": level.name}).encode())

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class ProtectionKeeper:
    """A thread that looks each second; what it cannot see now, it sees later."""

    def __init__(
        self,
        policy: ProtectionPolicy,
        quorum: WriteQuorum,
        mark: ProtectionMark,
        server: SyncServer,
        store: Store,
        archiver: Archiver,
        *,
        note: Callable[[Happening], None],
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        log: FilteringBoundLogger,
        count: Callable[[str], None],
    ) -> None:
        self._quorum: Final = quorum
        self._mark: Final = mark
        self._server: Final = server
        self._store: Final = store
        self._archiver: Final = archiver
        self._note: Final = note
        self._now: Final = now
        self._monotonic: Final = monotonic
        self._log: Final = log
        self._count: Final = count
        # The marks are two files: a crash between them must not leave commits released for good.
        self._level = Level.ASYNCHRONOUS if server.has_released else mark.read()
        self._ladder = Ladder(policy, self._level)
        self._look = SyncLook(is_synchronous=False, commits_waiting=0, can_release=False)
        self._settling_since: datetime | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="protection", daemon=True)

    @property
    def level(self) -> Level:
        """What an acknowledgement is worth now; below the quorum until all that was lowered has caught up."""
        return self._level

    @property
    def is_synchronous(self) -> bool:
        """Whether commits wait for us, as far as the server said when it was last asked."""
        return self._look.is_synchronous

    def begin(self) -> None:
        """Put the level in force that an earlier run left, before anything is archived."""
        if self._level is not Level.QUORUM:
            self._log.warning("acknowledged commits are worth less", worth=self._level.described)
            self._put_in_force(self._level)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon; a look that hangs in a call is left behind.  The level stays in force."""
        self._stopping.set()
        self._thread.join(STOP_S)

    def _keep(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            look_and_go_on("the look at who waits", self.step, self._log.critical)

    def step(self) -> None:
        """Look, and act on it."""
        look = self._ask_server()
        was_synchronous, self._look = self._look.is_synchronous, look
        if self._settling_since is not None:
            self._settle(self._settling_since)
        seen = self._observe(look)
        level, in_force = self._ladder.step(seen), self._in_force
        if level > in_force:
            self._lower(level)
        elif level < in_force:
            self._raise()
        elif self._ladder.must_release_again(seen):
            self._release_again()
        elif look.is_synchronous != was_synchronous:
            self._log.info("commits wait for us" if look.is_synchronous else "no commit waits for us")
            self._put_in_force(in_force)

    @property
    def _in_force(self) -> Level:
        """What an acknowledgement given now is worth; those before may be worth less for a while yet."""
        return self._level if self._settling_since is None else Level.QUORUM

    def _ask_server(self) -> SyncLook:
        try:
            return self._server.look()
        except (ServerUnavailable, ServerRefused) as failure:
            self._log.debug("the server cannot be asked who waits", reason=failure.message)
            # Nobody can wait at a server that is away; that it would is remembered.
            return SyncLook(self._look.is_synchronous, 0, self._look.can_release)

    def _observe(self, look: SyncLook) -> Observation:
        regions, status, now = self._store.status(), self._archiver.status(), self._now()
        level = [one for one in regions if one.is_healthy and _lacks_s(one, now) < _ON_ITS_WAY_S]
        return Observation(
            at_s=self._monotonic(),
            is_synchronous=look.is_synchronous,
            commits_waiting=look.commits_waiting,
            unflushed_age_s=status.oldest_unflushed_age_s or 0.0,
            regions_answering=sum(one.is_healthy for one in regions),
            regions_level=len(level),
            quorum=self._quorum.acknowledged_by,
            can_release=look.can_release,
        )

    def _lower(self, level: Level) -> None:
        """Say so where it lasts, then do it; if it cannot be said, commits go on waiting."""
        status = self._archiver.status()
        message = f"acknowledged commits are {level.described} from now on"
        try:
            self._note_event(
                EventKind.PROTECTION_LOWERED,
                message,
                level=level.name.lower(),
                before=self._level.name.lower(),
                durable=status.durable,
                acknowledged=status.acknowledged,
                commits_waiting=self._look.commits_waiting,
            )
            self._mark.write(level)
            if level is Level.ASYNCHRONOUS:
                self._release()
        except (NotesFailed, OSError, ServerUnavailable, ServerRefused) as failure:
            self._stay()
            self._log.critical("protection cannot be lowered, and commits wait", reason=str(failure))
            return
        self._level = level
        self._settling_since = None
        self._put_in_force(level)
        self._count("protection-lowered")
        self._log.critical(message, durable=str(status.durable), level=level.name.lower())

    def _release(self) -> None:
        """Let the server release commits; if it is not known whether it did, that is found out later."""
        self._note_event(EventKind.COMMITS_RELEASED, "the server waits for us no more", by="daemon")
        try:
            undone = self._server.release()
        except ServerUnavailable as failure:
            self._log.critical("the server does not say whether it released commits", reason=str(failure))
            return
        if undone is not Undone.NOTHING:
            self._log.critical(f"of an earlier release: {undone}")

    def _release_again(self) -> None:
        """Commits wait, on the last step: for a server that did not follow, or a new primary, or by hand."""
        try:
            self._release()
        except (NotesFailed, OSError, ServerRefused) as failure:
            self._log.critical("commits cannot be released again, and wait", reason=str(failure))

    def _raise(self) -> None:
        """Ask for the quorum again, and wait until what was lowered has it too."""
        try:
            if self._level is Level.ASYNCHRONOUS:
                self._hold_again()
        except (OSError, ServerUnavailable, ServerRefused) as failure:
            self._log.warning("commits cannot be held again yet", reason=str(failure))
            self._stay()
            return
        self._settling_since = self._now()
        self._put_in_force(Level.QUORUM)

    def _hold_again(self) -> None:
        # First what an acknowledgement is worth: a commit that waits must not be told of one region's.
        self._put_in_force(Level.QUORUM)
        undone = self._server.hold_again()
        if undone is not Undone.HELD:
            self._log.warning(f"after a release: {undone}")
            return
        try:
            self._note_event(EventKind.COMMITS_HELD_AGAIN, str(undone), by="daemon")
        except (NotesFailed, OSError) as failure:
            # They wait, and that is not taken back for a note.
            self._log.critical(f"{undone}, and that cannot be noted", reason=str(failure))

    def _stay(self) -> None:
        """Go on with the level as it is: the step could not be taken, and is tried again after a while."""
        in_force = self._in_force
        self._ladder.stay(in_force)
        self._put_in_force(in_force)
        with suppress(OSError):
            if self._level is Level.QUORUM:
                self._mark.remove()
            else:
                self._mark.write(self._level)

    def _settle(self, since: datetime) -> None:
        """When the quorum has all that was acknowledged with less, the promise is whole, and that is said."""
        whole = [
            one
            for one in self._store.status()
            if one.is_healthy and (one.oldest_pending_at is None or one.oldest_pending_at > since)
        ]
        if len(whole) < self._quorum.acknowledged_by:
            return
        before = self._level
        try:
            message = f"acknowledged commits are {Level.QUORUM.described} again, also those before"
            self._note_event(
                EventKind.PROTECTION_RESTORED,
                message,
                before=before.name.lower(),
                durable=self._archiver.status().durable,
            )
            self._mark.remove()
        except (NotesFailed, OSError) as failure:
            self._log.warning("the promise is whole again, and that cannot be noted", reason=str(failure))
            return
        self._level, self._settling_since = Level.QUORUM, None
        self._count("protection-restored")
        self._log.warning(message)

    def _put_in_force(self, level: Level) -> None:
        acknowledged_by = self._quorum.acknowledged_by if level is Level.QUORUM else 1
        self._store.require(acknowledged_by)
        self._archiver.acknowledge(
            Acknowledgement(
                is_synchronous=self._look.is_synchronous,
                # Once commits are released nobody waits, and the server keeps what no region has.
                counts_spooled=level is Level.SPOOLED,
                quorum=WriteQuorum(self._quorum.regions, acknowledged_by),
            )
        )

    def _note_event(self, kind: EventKind, message: str, **facts: object) -> None:
        self._note(Happening.of(self._now(), kind, message, **facts))


def _lacks_s(region: RegionStatus, now: datetime) -> float:
    """Return the age of the oldest thing that a region lacks; what is stuck is never made good."""
    if region.stuck_repairs:
        return float("inf")
    if region.oldest_pending_at is None:
        return 0.0
    return max(0.0, (now - region.oldest_pending_at).total_seconds())
