"""A server as SQL shows it: who it is, how it is set, and the functions that a base backup calls.

Thin: one session, one statement per method.  Not the replication protocol
(``pitr.postgres.replication``), and never a query on the owner's tables.

Reference: PostgreSQL manual, "Making a Base Backup Using the Low Level API" (25.3.4 in 17) and
"System Administration Functions"; majors 15 to 18.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pitr.errors import MalformedValue, ServerRefused, ServerUnavailable
from pitr.postgres.datadir import PG_GLOBAL_OID, RelationFile
from pitr.postgres.page import PAGE_BYTES
from pitr.postgres.sql_errors import mapped_errors
from pitr.wal.lsn import LSN
from pitr.wal.segment import check_segment_bytes
from pitr.wal.timeline import TimelineId

_CANCEL_POLL_S = 0.2
VERSION_MIN = 150000
CONNECT_TIMEOUT_S = 20
STATEMENT_TIMEOUT_S = 60.0
# A spread checkpoint takes as long as checkpoint_timeout allows, a day at most; nobody waits so long.
BACKUP_START_TIMEOUT_S = 3600.0
RELATION_NAMES_MAX = 1000
LABEL_CHARS_MAX = 200

# A peer that is gone without a word must be noticed; what the DSN says wins.
_CONNECTION_DEFAULTS: dict[str, str | int] = {
    "application_name": "pitr",
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# The pair of ``ServerFacts.settings`` that is no setting: a restore connects as this role (BackupManifest).
SUPERUSER = "bootstrap_superuser"
# What a person who restores may have to know or to set; none of them can hold a secret.
SETTINGS_OF_INTEREST = (
    *("archive_mode", "cluster_name", "config_file", "data_checksums", "data_directory_mode"),
    *("full_page_writes", "hba_file", "ident_file", "max_connections", "max_locks_per_transaction"),
    *("max_prepared_transactions", "max_wal_senders", "max_worker_processes", "port", "server_encoding"),
    *("server_version", "shared_buffers", "shared_preload_libraries", "summarize_wal", "synchronous_commit"),
    *("track_commit_timestamp", "TimeZone", "wal_level", "wal_log_hints", "wal_segment_size"),
)


def have_checksums(data_checksums: str) -> bool:
    """Tell whether every page has a checksum: not while they are being switched (``inprogress-…``, 19)."""
    return data_checksums == "on"


@dataclass(frozen=True, slots=True)
class ServerTablespace:
    """A tablespace outside the data directory."""

    oid: int
    name: str
    location: str


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server is, at the moment it was asked; ``segment_bytes`` is the WAL segment's size."""

    version_num: int
    system_identifier: int
    segment_bytes: int
    relation_segment_blocks: int
    data_directory: Path
    has_checksums: bool
    wal_level: str
    max_wal_senders: int
    is_in_recovery: bool
    started_at: datetime
    timeline: TimelineId
    tablespaces: tuple[ServerTablespace, ...]
    settings: tuple[tuple[str, str], ...]

    @property
    def major(self) -> int:
        return self.version_num // 10_000


@dataclass(frozen=True, slots=True)
class StoppedBackup:
    """What ``pg_backup_stop`` returned: two files to restore as they are, and the end of the needed WAL."""

    stop_lsn: LSN
    backup_label: bytes
    tablespace_map: bytes


class Server:
    """One SQL session.  Thread-safe: statements of several threads run one after the other.

    Any method raises ServerUnavailable when the session is lost or no answer comes in time, and
    ServerRefused when PostgreSQL says no.
    """

    def __init__(self, connection: psycopg.Connection, dsn: str, statement_timeout_s: float) -> None:
        self._connection = connection
        self._dsn = dsn
        self._statement_timeout_s = statement_timeout_s

    @classmethod
    def connect(cls, dsn: str, *, statement_timeout_s: float = STATEMENT_TIMEOUT_S) -> Server:
        """Open a session for ``dsn`` (a conninfo string or URI); each statement has that long."""
        server = cls(_open(dsn), dsn, statement_timeout_s)
        try:
            server._set_timeout(statement_timeout_s)
            # A backup's session says nothing for hours, and must live for as long.
            server.rows("SET idle_session_timeout = 0")
        except (ServerRefused, ServerUnavailable):
            server.close()
            raise
        return server

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session; a base backup that was started in it is void.  May be repeated."""
        self._connection.close()

    def interrupt(self) -> None:
        """Cancel the statement that another thread runs in this session, if any."""
        with mapped_errors():
            self._connection.cancel_safe(timeout=CONNECT_TIMEOUT_S)

    @contextmanager
    def interrupted_by(self, cancel: threading.Event) -> Iterator[None]:
        """Cancel the statement that runs in the block as soon as ``cancel`` is set."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_CANCEL_POLL_S):
                if cancel.is_set():
                    try:
                        self.interrupt()
                    except (ServerRefused, ServerUnavailable):
                        return  # the session is gone, and so is the statement
                    return

        watcher = threading.Thread(target=watch, name="sql-cancel", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def facts(self) -> ServerFacts:
        """Ask who the server is.  Raises ServerRefused if it is none that we can back up."""
        version = self._connection.info.server_version
        if version < VERSION_MIN:
            raise ServerRefused(
                f"PostgreSQL {version // 10_000} is not supported", hint="version 15 or later is needed"
            )
        own = ("block_size", "data_directory", "segment_size")
        rows = self.rows(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)",
            [*SETTINGS_OF_INTEREST, *own],
        )
        settings = {str(name): str(value) for name, value in rows}
        if "data_directory" not in settings:
            raise ServerRefused(
                "the server does not say where its data directory is",
                hint="GRANT pg_read_all_settings to this role",
            )
        if settings["block_size"] != str(PAGE_BYTES):
            raise ServerRefused(f"pages of {settings['block_size']} bytes are not supported")
        row = self._row(
            "SELECT (SELECT system_identifier FROM pg_control_system()), pg_is_in_recovery(),"
            " (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'),"
            " (SELECT setting FROM pg_settings WHERE name = 'segment_size'),"
            " extract(epoch FROM pg_postmaster_start_time())::bigint"
        )
        is_in_recovery = bool(row[1])
        # initdb's own has the least oid; pg_authid, unlike this view, is closed to our role.
        roles = "SELECT %s::text, rolname FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1"
        kept = {name: settings[name] for name in settings.keys() - set(own)}
        kept |= {str(name): str(role) for name, role in self.rows(roles, SUPERUSER)}
        return ServerFacts(
            version_num=version,
            system_identifier=int(str(row[0])),
            segment_bytes=check_segment_bytes(int(str(row[2]))),
            relation_segment_blocks=int(str(row[3])),
            data_directory=Path(settings["data_directory"]),
            has_checksums=have_checksums(settings["data_checksums"]),
            wal_level=settings["wal_level"],
            max_wal_senders=int(settings["max_wal_senders"]),
            is_in_recovery=is_in_recovery,
            started_at=datetime.fromtimestamp(int(str(row[4])), UTC),
            timeline=self._timeline(is_in_recovery),
            tablespaces=self.tablespaces(),
            settings=tuple(sorted(kept.items())),
        )

    def wal_identity(self) -> tuple[int, int]:
        """Return the system identifier and the size of a WAL segment in bytes."""
        size = "(SELECT setting FROM pg_settings WHERE name = 'wal_segment_size')"
        row = self._row(f"SELECT system_identifier, {size} FROM pg_control_system()")
        return int(str(row[0])), check_segment_bytes(int(str(row[1])))

    def wal_position(self) -> tuple[TimelineId, LSN, bool]:
        """Return the timeline, how far its WAL is flushed or received, and whether this is a standby."""
        row = self._row(
            "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery()"
            " THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"
            " ELSE pg_current_wal_flush_lsn() END::text"
        )
        return self._timeline(bool(row[0])), LSN.parse(str(row[1])), bool(row[0])

    def setting_sources(self) -> tuple[str, ...]:
        """Return the files where settings were found, as far as this role may see them."""
        rows = self.rows("SELECT DISTINCT sourcefile FROM pg_settings WHERE sourcefile IS NOT NULL")
        # Also those of settings that another file or the command line overrides.  It is for superusers unless
        # granted, and a refusal would be in the server's log; what files include is followed all the same.
        if self._row(
            "SELECT has_table_privilege('pg_file_settings', 'SELECT')"
            " AND has_function_privilege('pg_show_all_file_settings()', 'EXECUTE')"
        )[0]:
            rows += self.rows("SELECT DISTINCT sourcefile FROM pg_file_settings")
        return tuple(sorted({str(row[0]) for row in rows if row[0] is not None}))

    def tablespaces(self) -> tuple[ServerTablespace, ...]:
        """Return the tablespaces that lie elsewhere, by OID."""
        rows = self.rows(
            "SELECT oid::bigint, spcname, pg_tablespace_location(oid) FROM pg_tablespace"
            " WHERE pg_tablespace_location(oid) <> '' ORDER BY oid"
        )
        return tuple(ServerTablespace(int(str(row[0])), str(row[1]), str(row[2])) for row in rows)

    def data_checksums(self) -> str:
        """Return the setting as it is now."""
        return str(self._row("SELECT current_setting('data_checksums')")[0])

    def insert_lsn(self) -> LSN:
        """Return the end of the WAL that exists: nothing that a page shows can be later."""
        return self._lsn(
            "SELECT CASE WHEN pg_is_in_recovery()"
            " THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"
            " ELSE pg_current_wal_insert_lsn() END::text"
        )

    def switch_wal(self) -> LSN:
        """End the current WAL segment; return the LSN after what it holds."""
        return self._lsn("SELECT pg_switch_wal()::text")

    def create_restore_point(self, name: str) -> LSN:
        """Write a named restore point into WAL; return the LSN after it."""
        return self._lsn("SELECT pg_create_restore_point(%s)::text", name)

    def start_backup(self, label: str, *, fast: bool, timeout_s: float = BACKUP_START_TIMEOUT_S) -> LSN:
        """Begin a base backup in this session, after a checkpoint; return the start of the WAL it needs.

        ``fast`` asks for the checkpoint at once, at the cost of a burst of writes.
        """
        if not 0 < len(label) <= LABEL_CHARS_MAX or not label.isprintable():
            # It becomes one line of backup_label: another line in it could be read as a field.
            raise MalformedValue(f"not a label for a backup: {label!r}")
        self._set_timeout(timeout_s)
        lsn = self._lsn("SELECT pg_backup_start(%s, %s)::text", label, fast)
        self._set_timeout(self._statement_timeout_s)
        return lsn

    def stop_backup(self) -> StoppedBackup:
        """End the base backup of this session.  Does not wait for ``archive_command``."""
        # As bytes: in a SQL_ASCII database the paths in it can be in any encoding.
        row = self._row(
            "SELECT lsn::text, convert_to(labelfile, getdatabaseencoding()),"
            " convert_to(coalesce(spcmapfile, ''), getdatabaseencoding())"
            " FROM pg_backup_stop(wait_for_archive => false)"
        )
        label, spaces = row[1], row[2]
        if not isinstance(label, bytes) or not isinstance(spaces, bytes):
            raise ServerUnavailable("pg_backup_stop returned no backup label")
        return StoppedBackup(LSN.parse(str(row[0])), label, spaces)

    def relation_names(self, wanted: Collection[RelationFile]) -> dict[RelationFile, str]:
        """Return ``database.schema.relation`` of each file, as far as a catalogue names it now.

        For reports: at most RELATION_NAMES_MAX are looked up, and a database that does not let us in
        is left out.
        """
        by_database: dict[int, list[RelationFile]] = {}
        for relation in sorted(wanted, key=lambda each: (each.database, each.filenode))[:RELATION_NAMES_MAX]:
            by_database.setdefault(relation.database, []).append(relation)
        databases = {
            int(str(row[0])): (str(row[1]), int(str(row[2])))
            for row in self.rows("SELECT oid::bigint, datname, dattablespace::bigint FROM pg_database")
        }
        names: dict[RelationFile, str] = {}
        for oid, relations in by_database.items():
            if oid and oid not in databases:
                continue  # dropped meanwhile
            database, default_space = databases.get(oid, (None, PG_GLOBAL_OID))
            try:
                names.update(self._names_in(database, default_space, relations))
            except (ServerRefused, ServerUnavailable):
                continue  # a name is a courtesy; the finding stands without it
        return names

    def _names_in(
        self, database: str | None, default_space: int, relations: Sequence[RelationFile]
    ) -> dict[RelationFile, str]:
        """Ask one database; None is any, for the shared catalogues."""
        own = {"dbname": database} if database is not None else {}
        names = {}
        with Server.connect(make_conninfo(self._dsn, **own)) as server:
            for relation in relations:
                is_default = relation.tablespace == default_space and database is not None
                rows = server.rows(
                    "SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c"
                    " JOIN pg_namespace n ON n.oid = c.relnamespace"
                    " WHERE c.oid = pg_filenode_relation(%s::bigint::oid, %s::bigint::oid)",
                    0 if is_default else relation.tablespace,
                    relation.filenode,
                )
                if rows:
                    names[relation] = f"{database}.{rows[0][0]}" if database is not None else str(rows[0][0])
        return names

    def copy_out(self, query: LiteralString, *parameters: object) -> Iterator[memoryview]:
        """Yield a query's rows as ``COPY … TO STDOUT (FORMAT binary)`` gives them, one or more at a time."""
        # A large answer takes as long as it is read.
        self._set_timeout(BACKUP_START_TIMEOUT_S)
        try:
            with mapped_errors(), self._connection.cursor() as cursor:
                statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(
                    sql.SQL(query).format(*(sql.Literal(each) for each in parameters))
                )
                with cursor.copy(statement) as rows:
                    for row in rows:
                        yield memoryview(row)
        finally:
            # Also after a refusal, for the session goes on; one that is lost has said so already.
            if not self._connection.closed:
                self._set_timeout(self._statement_timeout_s)

    def database_versions(self) -> dict[int, str]:
        """Return each database's row version by its OID: another one may be another database."""
        rows = self.rows("SELECT oid::bigint, xmin::text FROM pg_database")
        return {int(str(oid)): str(xmin) for oid, xmin in rows}

    def _timeline(self, is_in_recovery: bool) -> TimelineId:
        if is_in_recovery:
            return TimelineId(int(str(self._row("SELECT timeline_id FROM pg_control_checkpoint()")[0])))
        # The control file is behind until the first checkpoint after a promotion.
        name = self._row("SELECT pg_walfile_name(pg_current_wal_lsn())")[0]
        return TimelineId.parse(str(name)[:8])

    def _set_timeout(self, timeout_s: float) -> None:
        self.rows("SELECT set_config('statement_timeout', %s, false)", f"{round(timeout_s * 1000)}ms")

    def _lsn(self, statement: LiteralString, *parameters: object) -> LSN:
        text = self._row(statement, *parameters)[0]
        if text is None:
            raise ServerUnavailable("the server has no WAL position yet")
        return LSN.parse(str(text))

    def _row(self, statement: LiteralString, *parameters: object) -> tuple[object, ...]:
        rows = self.rows(statement, *parameters)
        if len(rows) != 1:
            raise ServerUnavailable(f"the server returned {len(rows)} rows where one was asked for")
        return rows[0]

    def rows(self, statement: LiteralString, *parameters: object) -> list[tuple[object, ...]]:
        with mapped_errors():
            cursor = self._connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []


def _open(dsn: str) -> psycopg.Connection:
    with mapped_errors():
        named = conninfo_to_dict(dsn)
        missing = {name: value for name, value in _CONNECTION_DEFAULTS.items() if name not in named}
        return psycopg.connect(make_conninfo(dsn, **missing), autocommit=True)
