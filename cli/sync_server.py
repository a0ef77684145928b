"""The server, as far as its commits wait for this daemon, asked in a session that is opened again and again.

What stood in ``synchronous_standby_names`` before commits were released is kept in a file, written first: a
daemon that starts after a crash puts it back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from cli.protection_keeper import SyncLook, Undone
from pitr.errors import ServerRefused, ServerUnavailable
from pitr.postgres.sync_names import SyncNames
from pitr.postgres.sync_standby import SyncStandby, standby_name
from pitr.release_journal import Release
from storage.synced_file import replace_synced

# As PostgreSQL's pg_stat_replication.sync_state has it: these are waited for.
_WAITED_FOR: Final = frozenset({"sync", "quorum"})
_NOTE_BYTES_MAX: Final = 1 << 16

_T = TypeVar("_T")


class ReleaseNote:
    """What stood before, and where, while commits are released; the file is there only as long."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def read(self) -> Release | None:
        """Return what was or may have been done.  Raises ServerRefused."""
        try:
            with self._path.open("rb") as file:
                fields = json.loads(file.read(_NOTE_BYTES_MAX))
            names, released, server = (str(fields[name]) for name in ("names", "released", "server"))
            return Release(server, names, bool(fields["was_in_auto_conf"]), released)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise ServerRefused(
                f"{self._path} does not say what synchronous_standby_names was",
                hint="set it by hand, and remove the file",
            ) from cause

    def write(self, release: Release) -> None:
        """Return once it is on disk.  Raises OSError."""
        fields = {
            "server": release.server,
            "names": release.before,
            "was_in_auto_conf": release.was_in_auto_conf,
            "released": release.released,
        }
        replace_synced(self._path, json.dumps(fields).encode())

    @property
    def is_there(self) -> bool:
        return self._path.exists()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class SyncServerSession:
    """See ``cli.protection_keeper.SyncServer``.  Not thread-safe."""

    def __init__(self, dsn: Callable[[], str], note: ReleaseNote) -> None:
        """``dsn`` is asked at each connect: the primary may be another server then."""
        self._dsn: Final = dsn
        self._note: Final = note
        self._session: SyncStandby | None = None
        self._name = ""

    def close(self) -> None:
        """End the session.  May be repeated."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @property
    def has_released(self) -> bool:
        """See ``SyncServer.has_released``."""
        return self._note.is_there

    def look(self) -> SyncLook:
        """See ``SyncServer.look``."""
        return self._asked(self._look)

    def _look(self, session: SyncStandby) -> SyncLook:
        return SyncLook(
            is_synchronous=any(
                one.application_name == self._name and one.sync_state in _WAITED_FOR
                for one in session.standbys()
            ),
            commits_waiting=session.waiting().sessions,
            can_release=session.rights().suffice and session.setting().is_ours_to_change,
        )

    def release(self) -> Undone:
        """See ``SyncServer.release``.  What stood before is on disk first."""
        return self._asked(self._release)

    def _release(self, session: SyncStandby) -> Undone:
        # A note that is there still is of a server that does not lead now, or of what others have undone.
        undone = self._hold_again(session)
        view = session.look()
        names = SyncNames.parse(view.setting.names)
        if names.names_standby(self._name):
            left = str(names.without(self._name))
            release = Release(view.server, view.setting.names, view.setting.is_in_auto_conf, left)
            self._note.write(release)
            session.release(release.released)
        # Else another, the watchdog perhaps, has released them, and knows how to undo it.
        return undone

    def hold_again(self) -> Undone:
        """See ``SyncServer.hold_again``."""
        return self._asked(self._hold_again)

    def _hold_again(self, session: SyncStandby) -> Undone:
        release = self._note.read()
        if release is None:
            return Undone.NOTHING
        view = session.look()
        if view.server != release.server:
            self._note.remove()
            return Undone.ELSEWHERE
        # A daemon that was killed may have altered it, and the server not have read that yet.
        setting = session.reload()
        undone = Undone.HELD
        if setting.names == release.released and setting.is_in_auto_conf:
            session.restore(release.before, was_in_auto_conf=release.was_in_auto_conf)
        elif setting.names != release.before:
            undone = Undone.CHANGED
        self._note.remove()
        return undone

    def _asked(self, ask: Callable[[SyncStandby], _T]) -> _T:
        if self._session is None:
            dsn = self._dsn()
            self._session, self._name = SyncStandby.connect(dsn), standby_name(dsn)
        try:
            return ask(self._session)
        except ServerUnavailable:
            self.close()
            raise
