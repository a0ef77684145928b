"""The daemon's look at tablespaces: one that the last backup lacks makes a base backup due at once.

Until there is a backup that has it, replay makes it where it was made, which on the source's own host is the
live cluster's directory: restores to those moments are refused there (docs/restore.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from pitr.errors import PitrError
from pitr.postgres.server import Server, ServerTablespace

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.backup_runner import BackupRunner

STATEMENT_TIMEOUT_S: Final = 10.0
# A backup that fails is repeated by the timetable; it is not asked for more often than this.
ASK_EVERY_S: Final = 300.0


class SpaceWatch:
    """Looks when asked.  Not thread-safe.  ``ask`` brings the timetable's next backup forward."""

    def __init__(
        self,
        session: Callable[[], str],
        backups: BackupRunner,
        *,
        ask: Callable[[], None],
        log: FilteringBoundLogger,
        monotonic: Callable[[], float],
    ) -> None:
        self._session: Final = session
        self._backups: Final = backups
        self._ask: Final = ask
        self._log: Final = log
        self._monotonic: Final = monotonic
        self._asked_s = float("-inf")

    def look(self) -> None:
        """Ask for a backup if the server has a tablespace that the last one lacks."""
        # Without one the first is due anyway, and one that runs now may have it.
        last = self._backups.last
        if last is None or self._backups.is_running or self._monotonic() - self._asked_s < ASK_EVERY_S:
            return
        try:
            with Server.connect(self._session(), statement_timeout_s=STATEMENT_TIMEOUT_S) as server:
                lacking = newer_spaces(server.tablespaces(), {space.oid for space in last.tablespaces})
        except PitrError as error:
            self._log.debug("the tablespaces cannot be looked at", reason=str(error))
            return
        if not lacking:
            return
        self._asked_s = self._monotonic()
        self._log.warning(
            "the last backup lacks a tablespace, so a new one is taken now",
            tablespaces=", ".join(f"{space.name} ({space.oid})" for space in lacking),
            backup=last.backup,
        )
        self._ask()


def newer_spaces(now: Iterable[ServerTablespace], known: set[int]) -> list[ServerTablespace]:
    """Return those that lie outside of the data directory and are not known."""
    return [space for space in now if space.location.startswith("/") and space.oid not in known]
