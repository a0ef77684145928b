"""The server, as far as its commits wait for this daemon, asked in a session that is opened again and again.

What stood in ``synchronous_standby_names`` before commits were released is kept in a file, written first: a
daemon that starts after a crash puts it back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from cli.protection_keeper import SyncLook
from pitr.errors import ServerRefused, ServerUnavailable
from pitr.postgres.sync_standby import SyncStandby, standby_name
from storage.synced_file import replace_synced

# As PostgreSQL's pg_stat_replication.sync_state has it: these are waited for.
_WAITED_FOR: Final = frozenset({"sync", "quorum"})
_NOTE_BYTES_MAX: Final = 1 << 16

_T = TypeVar("_T")


class ReleaseNote:
    """What stood before, while commits are released; the file is there only as long."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def read(self) -> tuple[str, bool] | None:
        """Return the names, and whether they stood in postgresql.auto.conf.  Raises ServerRefused."""
        try:
            with self._path.open("rb") as file:
                fields = json.loads(file.read(_NOTE_BYTES_MAX))
            return str(fields["names"]), bool(fields["was_in_auto_conf"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise ServerRefused(
                f"{self._path} does not say what synchronous_standby_names was",
                hint="set it by hand, and remove the file",
            ) from cause

    def write(self, names: str, *, was_in_auto_conf: bool) -> None:
        """Return once it is on disk.  Raises OSError."""
        fields = {"names": names, "was_in_auto_conf": was_in_auto_conf}
        replace_synced(self._path, json.dumps(fields).encode())

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

    def release(self, reason: str) -> None:  # noqa: ARG002 - the event says it
        """See ``SyncServer.release``.  What stood before is on disk first."""
        self._asked(self._release)

    def _release(self, session: SyncStandby) -> None:
        setting = session.setting()
        if setting.names:
            self._note.write(setting.names, was_in_auto_conf=setting.is_in_auto_conf)
        session.release("")

    def hold_again(self) -> None:
        """See ``SyncServer.hold_again``."""
        self._asked(self._hold_again)

    def _hold_again(self, session: SyncStandby) -> None:
        before = self._note.read()
        if before is not None:
            names, was_in_auto_conf = before
            session.restore(names, was_in_auto_conf=was_in_auto_conf)
            self._note.remove()

    def _asked(self, ask: Callable[[SyncStandby], _T]) -> _T:
        if self._session is None:
            dsn = self._dsn()
            self._session, self._name = SyncStandby.connect(dsn), standby_name(dsn)
        try:
            return ask(self._session)
        except ServerUnavailable:
            self.close()
            raise
