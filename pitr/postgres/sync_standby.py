"""What commits wait for on a server, whether we are it, and how they are released.

A session of its own, used for nothing else: reading takes no lock and no transaction id, and ``ALTER SYSTEM``
is not held up by commits that wait.  When to release is not decided here (``pitr.commit_release``).

Reference: PostgreSQL manual, "Synchronous Replication", "ALTER SYSTEM", pg_stat_replication,
pg_stat_activity (wait event SyncRep); 15 to 18.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pitr.errors import ServerRefused, ServerUnavailable
from pitr.postgres.server import Server
from pitr.wal.lsn import LSN

APPLICATION_NAME: Final = "pitr"
PARAMETER: Final = "synchronous_standby_names"
AUTO_CONF: Final = "postgresql.auto.conf"
# Whoever takes longer to say a row about itself is not there.
STATEMENT_TIMEOUT_S: Final = 10.0
# The postmaster passes a reload on within milliseconds.
_RELOAD_S: Final = 5.0
_RELOAD_POLL_S: Final = 0.05
# "pitr", and the first of what may be held by one process of ours for all hosts.
_LOCK_CLASS: Final = 0x70697472
_WATCHDOG_LOCK: Final = 1
STANDBYS_MAX: Final = 1000

GRANTS: Final = (
    "GRANT pg_monitor TO {role}",
    "GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO {role}",
    "GRANT EXECUTE ON FUNCTION pg_reload_conf() TO {role}",
)
_SETTING: Final = (
    "SELECT s.setting, s.source, s.sourcefile,"
    " (SELECT setting FROM pg_settings WHERE name = 'data_directory'),"
    " (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit')"
    " FROM pg_settings s WHERE s.name = 'synchronous_standby_names'"
)
_LEVELS: Final = (
    "SELECT r.rolname, d.datname, substr(c, length('synchronous_commit=') + 1)"
    " FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c"
    " LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase"
    " WHERE starts_with(c, 'synchronous_commit=') ORDER BY 1, 2 LIMIT 100"
)
_STANDBYS: Final = (
    "SELECT r.pid, r.application_name, r.state, r.sync_state, r.flush_lsn::text"
    " FROM pg_stat_replication r LIMIT 1000"
)
# A session that we may not look into shows no state either.
_WAITING: Final = (
    "SELECT count(*) FILTER (WHERE wait_event = 'SyncRep'),"
    " coalesce(extract(epoch FROM clock_timestamp() - min(query_start)"
    " FILTER (WHERE wait_event = 'SyncRep')), 0),"
    " pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
    " FROM pg_stat_activity WHERE backend_type = 'client backend' OR backend_type IS NULL"
)
_SERVER: Final = (
    "SELECT pg_is_in_recovery(), coalesce(host(inet_server_addr()), 'local') || ' '"
    " || current_setting('port') || ' '"
    " || coalesce((SELECT setting FROM pg_settings WHERE name = 'data_directory'), '')"
)
_RIGHTS: Final = (
    "SELECT has_parameter_privilege('synchronous_standby_names', 'ALTER SYSTEM'),"
    " has_function_privilege('pg_reload_conf()', 'EXECUTE')"
)


def standby_name(dsn: str) -> str:
    """Return the ``application_name`` under which a daemon with this connection string streams."""
    return str(conninfo_to_dict(dsn).get("application_name") or APPLICATION_NAME)


@dataclass(frozen=True, slots=True)
class SyncSetting:
    """What ``synchronous_standby_names`` is now, and where that stands.

    ``is_in_auto_conf``: it was set by ``ALTER SYSTEM``.  ``is_ours_to_change``: another ``ALTER SYSTEM``
    would override it, and the role may see so.  ``commit``: a new session's ``synchronous_commit``.
    """

    names: str
    is_in_auto_conf: bool
    is_ours_to_change: bool
    stands_in: str
    commit: str


@dataclass(frozen=True, slots=True)
class CommitLevel:
    """What ``ALTER ROLE`` or ``ALTER DATABASE`` has set for others' sessions; None where it is for all."""

    role: str | None
    database: str | None
    commit: str

    def __str__(self) -> str:
        whose = (("role", self.role), ("database", self.database))
        return " in ".join(f'{kind} "{name}"' for kind, name in whose if name is not None) or "all roles"


@dataclass(frozen=True, slots=True)
class Standby:
    """A session that WAL is sent to.  What the role may not see is None."""

    pid: int
    application_name: str
    state: str | None
    sync_state: str | None
    flushed: LSN | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Commits that wait for standbys; ``is_hidden`` if the role may not see those of others.

    ``oldest_s`` is the age of the statement that waits longest, which is more than its wait.
    """

    sessions: int
    oldest_s: float
    is_hidden: bool


@dataclass(frozen=True, slots=True)
class Rights:
    """What the role may do about commits that wait."""

    may_alter: bool
    may_reload: bool

    @property
    def suffice(self) -> bool:
        return self.may_alter and self.may_reload


@dataclass(frozen=True, slots=True)
class SyncView:
    """One look.  ``server`` tells one server from another, also of the same cluster."""

    server: str
    is_standby: bool
    end: LSN | None
    setting: SyncSetting
    standbys: tuple[Standby, ...]
    waiting: Waiting


class SyncStandby:
    """Asks and acts in one session.  Raises as ``Server`` does."""

    def __init__(self, server: Server, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._server = server
        self._sleep = sleep
        # ALTER SYSTEM takes none that lasts; whatever comes to take one must not be waited for.
        server.rows("SELECT set_config('lock_timeout', '5s', false)")

    @classmethod
    def connect(cls, dsn: str) -> SyncStandby:
        """Open a session; each statement has STATEMENT_TIMEOUT_S."""
        server = Server.connect(
            make_conninfo(dsn, application_name="pitr watchdog"), statement_timeout_s=STATEMENT_TIMEOUT_S
        )
        try:
            return cls(server)
        except (ServerRefused, ServerUnavailable):
            server.close()
            raise

    def close(self) -> None:
        """End the session.  May be repeated."""
        self._server.close()

    def is_alone(self) -> bool:
        """Take the lock that one watchdog per database holds, on whatever host; False if another has it."""
        row = self._server.rows("SELECT pg_try_advisory_lock(%s, %s)", _LOCK_CLASS, _WATCHDOG_LOCK)[0]
        return bool(row[0])

    def look(self) -> SyncView:
        """Return what commits wait for now."""
        is_standby, server = self._server.rows(_SERVER)[0]
        end = None
        if not is_standby:
            end = LSN.parse(str(self._server.rows("SELECT pg_current_wal_flush_lsn()::text")[0][0]))
        return SyncView(str(server), bool(is_standby), end, self.setting(), self.standbys(), self.waiting())

    def setting(self) -> SyncSetting:
        """Return the setting that is in force, and where it stands."""
        names, source, file, data_directory, commit = self._server.rows(_SETTING)[0]
        stands_in = str(source) if file is None else str(file)
        is_auto = file is not None and data_directory is not None
        return SyncSetting(
            names=str(names),
            is_in_auto_conf=is_auto and Path(str(file)) == Path(str(data_directory)) / AUTO_CONF,
            # The command line wins over ALTER SYSTEM; without the right to see the file nothing is sure.
            is_ours_to_change=file is not None and source == "configuration file",
            stands_in=stands_in,
            commit=str(commit),
        )

    def levels(self) -> tuple[CommitLevel, ...]:
        """Return the ``synchronous_commit`` that roles and databases have of their own, 100 at most."""
        return tuple(
            CommitLevel(
                None if role is None else str(role), None if database is None else str(database), str(level)
            )
            for role, database, level in self._server.rows(_LEVELS)
        )

    def standbys(self) -> tuple[Standby, ...]:
        """Return who is sent WAL, at most STANDBYS_MAX."""
        return tuple(
            Standby(
                int(str(pid)),
                str(name or ""),
                None if state is None else str(state),
                None if sync is None else str(sync),
                None if flushed is None else LSN.parse(str(flushed)),
            )
            for pid, name, state, sync, flushed in self._server.rows(_STANDBYS)
        )

    def waiting(self) -> Waiting:
        """Return how many sessions wait for standbys to acknowledge their commit."""
        sessions, oldest_s, may_see = self._server.rows(_WAITING)[0]
        return Waiting(int(str(sessions)), max(0.0, float(str(oldest_s))), not may_see)

    def rights(self) -> Rights:
        """Return whether commits could be released."""
        may_alter, may_reload = self._server.rows(_RIGHTS)[0]
        return Rights(bool(may_alter), bool(may_reload))

    def role(self) -> str:
        """Return whom the server takes us for."""
        return str(self._server.rows("SELECT current_user")[0][0])

    def release(self, names: str) -> None:
        """Let commits wait for ``names`` only, from now on; those that wait are freed within a second.

        May be repeated.  Raises ServerRefused without the rights, with what was set before still in force.
        """
        self._alter(names)

    def restore(self, names: str, *, was_in_auto_conf: bool) -> None:
        """Undo ``release``: put ``names`` back where they stood.  May be repeated."""
        self._alter(names if was_in_auto_conf else None)

    def reload(self) -> SyncSetting:
        """Let the server read its files; return the setting then.  For what was altered and not read."""
        self._server.rows("SELECT pg_reload_conf()")
        self._sleep(10 * _RELOAD_POLL_S)
        return self.setting()

    def _alter(self, names: str | None) -> None:
        """Set, or (None) no longer set; then reload.  Both rights are needed before the first is used."""
        rights = self.rights()
        if not rights.suffice:
            lacking = GRANTS[1] if not rights.may_alter else GRANTS[2]
            raise ServerRefused(
                f"the role may not change {PARAMETER}", hint=lacking.format(role="the role of [cluster] dsn")
            )
        change = (
            sql.SQL("ALTER SYSTEM RESET synchronous_standby_names")
            if names is None
            else sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(names))
        )
        self._server.rows(change.as_string(None))
        self._server.rows("SELECT pg_reload_conf()")
        self._await(names)

    def _await(self, names: str | None) -> None:
        """Wait until this session sees the change, as the others do then; a reload says nothing itself."""
        for _ in range(round(_RELOAD_S / _RELOAD_POLL_S)):
            setting = self.setting()
            is_set = setting.is_in_auto_conf and setting.names == names
            if is_set or (names is None and not setting.is_in_auto_conf):
                return
            self._sleep(_RELOAD_POLL_S)
        raise ServerUnavailable(
            f"{PARAMETER} was altered, and the server does not follow",
            detail=f"In force is {setting.names!r} of {setting.stands_in}.",
        )
