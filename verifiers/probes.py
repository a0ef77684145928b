"""Probes of a PostgreSQL server: can it be backed up and streamed from, and is it set up well for that?

Asks with one short SQL session and one replication connection, and changes nothing.

Reference: PostgreSQL manual, "System Information Functions", "pg_replication_slots"; majors 15 to 18.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pitr.postgres.address import chooses_session, hosts_of
from verifiers.archiver import ArchiverWish, judge_archiver
from verifiers.base import Finding, Severity
from verifiers.standby_probes import StandbyWish, judge_standby

CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_MS = 15_000
VERSION_MIN = 150_000
SUMMARIES_SINCE = 170_000
SKEW_WARN_S = 2.0
SKEW_FAIL_S = 60.0
SLOT_RETAINED_WARN_BYTES = 1 << 30

_FACTS: LiteralString = """
SELECT current_setting('server_version_num')::int AS version,
       pg_is_in_recovery() AS is_standby,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       clock_timestamp() AS server_time,
       current_user::text AS role,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
       (SELECT rolreplication FROM pg_roles WHERE rolname = current_user) AS may_replicate,
       has_function_privilege('pg_backup_start(text, boolean)', 'EXECUTE') AS may_start,
       has_function_privilege('pg_backup_stop(boolean)', 'EXECUTE') AS may_stop,
       pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') AS reads_settings,
       (SELECT count(*) FROM pg_stat_replication) AS senders,
       (SELECT count(*) FROM pg_replication_slots) AS slots
"""
_SETTINGS: LiteralString = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"
_SETTING_NAMES = (
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "data_checksums",
    "data_directory",
    "full_page_writes",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "summarize_wal",
    "wal_level",
)
_ARCHIVER: LiteralString = """
SELECT last_archived_wal, last_archived_time, last_failed_wal, last_failed_time FROM pg_stat_archiver
"""
_SLOT: LiteralString = """
SELECT slot_type, active, wal_status, restart_lsn IS NOT NULL AS is_reserved,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
                            ELSE pg_current_wal_lsn() END, restart_lsn)::bigint AS retained_bytes
  FROM pg_replication_slots WHERE slot_name = %s
"""


@dataclass(frozen=True, slots=True)
class ServerProbe:
    """What one look at a server found, before it is judged."""

    version: int
    facts: Mapping[str, Any]
    settings: Mapping[str, str]
    slot: Mapping[str, Any] | None
    clock_skew_s: float
    archiver: Mapping[str, Any]

    @property
    def major(self) -> int:
        return self.version // 10_000


def probe_server(
    dsn: str,
    slot: str,
    *,
    now: Callable[[], datetime],
    reads_files: bool = True,
    archiver: ArchiverWish | None = None,
    leads_standby_cluster: bool | None = None,
) -> tuple[ServerProbe | None, list[Finding]]:
    """Look at the server; return what was seen (None if it did not let us in) and the findings.

    ``reads_files`` False: backups come over the replication protocol, from whatever host.  ``archiver``:
    what is wanted of ``archive_command``; where it is the source of WAL, nothing is streamed.
    ``leads_standby_cluster``: what Patroni says of it; None where it is not asked.
    """
    try:
        probe = _look(dsn, slot, now)
    except psycopg.Error as error:
        message = " ".join(str(error).split()) or type(error).__name__
        hint = "check [cluster] dsn, pg_hba.conf, and that the server runs"
        return None, [Finding("server.reachable", Severity.FAIL, "server", message, hint)]
    streams = not reads_files or archiver is None or not archiver.is_source
    findings = [
        Finding("server.reachable", Severity.OK, "server", f"answers as role {probe.facts['role']}"),
        *_judge_version(
            probe,
            StandbyWish(chooses_session(dsn), len(hosts_of(dsn)) > 1, reads_files, leads_standby_cluster),
        ),
        *_judge_streaming(probe, streams=streams),
        *_judge_grants(probe, reads_files=reads_files, streams=streams),
        *(_judge_slot(probe, slot) if streams else ()),
        *_judge_advice(probe, reads_files=reads_files, streams=streams),
    ]
    if streams:
        findings.append(_judge_replication_connection(dsn, probe))
    if archiver is not None and probe.version >= VERSION_MIN:
        findings += judge_archiver(
            probe.settings,
            probe.archiver,
            archiver,
            is_standby=bool(probe.facts["is_standby"]),
            has_slot=probe.slot is not None,
        )
    if reads_files:
        findings.append(judge_data_directory(probe.settings.get("data_directory"), os.access))
    return probe, findings


def _look(dsn: str, slot: str, now: Callable[[], datetime]) -> ServerProbe:
    options = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "pitr doctor",
        **conninfo_to_dict(dsn),
    }
    with psycopg.connect(make_conninfo("", **options), autocommit=True) as connection:
        connection.execute("SELECT set_config('statement_timeout', %s, false)", [str(STATEMENT_TIMEOUT_MS)])
        version = connection.info.server_version
        if version < VERSION_MIN:
            return ServerProbe(version, {"role": connection.info.user}, {}, None, 0.0, {})
        cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
        before = now()
        facts: Mapping[str, Any] = cursor.execute(_FACTS).fetchone() or {}
        middle = before + (now() - before) / 2
        settings = {row["name"]: row["setting"] for row in cursor.execute(_SETTINGS, [list(_SETTING_NAMES)])}
        found = cursor.execute(_SLOT, [slot]).fetchone()
        archiver = cursor.execute(_ARCHIVER).fetchone() or {}
    skew_s = (facts["server_time"].astimezone(UTC) - middle).total_seconds()
    return ServerProbe(version, facts, settings, found, skew_s, archiver)


def _judge_version(probe: ServerProbe, wish: StandbyWish) -> Iterator[Finding]:
    name = f"PostgreSQL {probe.major}"
    if probe.version < VERSION_MIN:
        yield Finding("server.version", Severity.FAIL, "server", name, "PostgreSQL 15 or later is needed")
        return
    yield Finding("server.version", Severity.OK, "server", name)
    if probe.facts["is_standby"]:
        yield judge_standby(wish)
    yield clock_finding("server.clock", "server", probe.clock_skew_s)


def clock_finding(check: str, subject: str, skew_s: float) -> Finding:
    """Return the finding for a clock that is ``skew_s`` ahead of ours (negative: behind)."""
    message = f"its clock differs by {abs(skew_s):.1f} s"
    if abs(skew_s) < SKEW_WARN_S:
        return Finding(check, Severity.OK, subject, message)
    severity = Severity.FAIL if abs(skew_s) >= SKEW_FAIL_S else Severity.WARN
    return Finding(check, severity, subject, message, "run an NTP client on both hosts")


def _judge_streaming(probe: ServerProbe, *, streams: bool) -> Iterator[Finding]:
    if probe.version < VERSION_MIN:
        return
    level = probe.settings["wal_level"]
    good = level in {"replica", "logical"}
    yield Finding(
        "server.wal_level",
        Severity.OK if good else Severity.FAIL,
        "server",
        f"wal_level = {level}",
        None if good else "ALTER SYSTEM SET wal_level = 'replica', then restart the server",
    )
    for check, setting, used in (
        ()
        if not streams
        else (
            ("server.max_wal_senders", "max_wal_senders", probe.facts["senders"]),
            ("server.max_replication_slots", "max_replication_slots", probe.facts["slots"]),
        )
    ):
        limit = int(probe.settings[setting])
        has_own = probe.slot is not None and setting == "max_replication_slots"
        is_active = probe.slot is not None and bool(probe.slot["active"])
        free = used < limit or has_own or (is_active and limit > 0)
        yield Finding(
            check,
            Severity.OK if free else Severity.FAIL,
            "server",
            f"{setting} = {limit}, {used} in use",
            None if free else f"ALTER SYSTEM SET {setting} = {max(10, 2 * limit)}, then restart the server",
        )


def _judge_grants(probe: ServerProbe, *, reads_files: bool, streams: bool) -> Iterator[Finding]:
    if probe.version < VERSION_MIN:
        return
    role = probe.facts["role"]
    is_superuser = bool(probe.facts["is_superuser"])
    wanted = (
        ("server.grant.replication", "may_replicate", "may stream WAL", f'ALTER ROLE "{role}" REPLICATION'),
        (
            "server.grant.backup",
            "may_backup",
            "may start and stop backups",
            f'GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO "{role}"',
        ),
        (
            "server.grant.settings",
            "reads_settings",
            "may read all settings",
            f'GRANT pg_read_all_settings TO "{role}"',
        ),
    )
    granted = {**probe.facts, "may_backup": probe.facts["may_start"] and probe.facts["may_stop"]}
    for check, fact, text, grant in wanted:
        if (fact == "may_backup" and not reads_files) or (fact == "may_replicate" and not streams):
            continue
        good = is_superuser or bool(granted[fact])
        message = f"role {role} {text}" if good else f"role {role} lacks a right: it must be one that {text}"
        yield Finding(
            check, Severity.OK if good else Severity.FAIL, "server", message, None if good else grant
        )


def _judge_slot(probe: ServerProbe, name: str) -> Iterator[Finding]:
    if probe.version < VERSION_MIN:
        return
    check, slot = "server.slot", probe.slot
    if slot is None:
        yield Finding(
            check, Severity.WARN, name, "the slot does not exist yet", "pitr init, or pitr daemon, makes it"
        )
        return
    if slot["slot_type"] != "physical":
        yield Finding(
            check, Severity.FAIL, name, f"the slot is {slot['slot_type']}", "choose another [cluster] slot"
        )
        return
    if slot["wal_status"] == "lost":
        hint = f"SELECT pg_drop_replication_slot('{name}'), then start the daemon: it takes a new full backup"
        yield Finding(check, Severity.FAIL, name, "the slot was invalidated: WAL before now is gone", hint)
        return
    retained = int(slot["retained_bytes"] or 0)
    state = "active" if slot["active"] else "not active"
    text = f"{state}, keeps {retained >> 20} MiB of WAL"
    if (
        slot["active"]
        and retained < SLOT_RETAINED_WARN_BYTES
        and slot["wal_status"] in {"reserved", "extended"}
    ):
        yield Finding(check, Severity.OK, name, text)
    elif not slot["active"]:
        yield Finding(check, Severity.WARN, name, text, "start the daemon: pitr daemon")
    else:
        yield Finding(check, Severity.WARN, name, text, "the daemon lags: look at pitr status")


def _judge_slot_limit(settings: Mapping[str, str]) -> Finding:
    check, limit = "server.max_slot_wal_keep_size", settings["max_slot_wal_keep_size"]
    if limit != "-1":
        return Finding(check, Severity.OK, "server", f"max_slot_wal_keep_size = {limit} MB")
    return Finding(
        check,
        Severity.WARN,
        "server",
        "max_slot_wal_keep_size = -1: a long outage of all regions can fill pg_wal",
        "ALTER SYSTEM SET max_slot_wal_keep_size to what the disk can spare, and watch the slot",
    )


def _judge_advice(probe: ServerProbe, *, reads_files: bool, streams: bool) -> Iterator[Finding]:
    if probe.version < VERSION_MIN:
        return
    settings = probe.settings
    if streams:
        yield _judge_slot_limit(settings)
    has_checksums = settings["data_checksums"] == "on"
    yield Finding(
        "server.data_checksums",
        Severity.OK if has_checksums else Severity.WARN,
        "server",
        f"data_checksums = {settings['data_checksums']}",
        None
        if has_checksums
        else "stop the server and run pg_checksums --enable, so that bad pages are seen",
    )
    if probe.version >= SUMMARIES_SINCE:
        summarizes = settings.get("summarize_wal") == "on"
        yield Finding(
            "server.summarize_wal",
            Severity.OK if summarizes else Severity.WARN,
            "server",
            f"summarize_wal = {settings.get('summarize_wal')}",
            None
            if summarizes
            else "ALTER SYSTEM SET summarize_wal = on: without it "
            + ("incremental backups read all" if reads_files else "every backup is a full one"),
        )
    elif not reads_files:
        yield Finding(
            "server.summarize_wal",
            Severity.WARN,
            "server",
            f"PostgreSQL {probe.major} sends no incremental backups over the protocol: every one is full",
            'set [backup] incr_every = "never"; or source = "files", on the server\'s own host',
        )


def _judge_replication_connection(dsn: str, probe: ServerProbe) -> Finding:
    """Open a replication connection, which pg_hba.conf may refuse where an ordinary one is let in."""
    check = "server.replication_connection"
    options = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        **conninfo_to_dict(dsn),
        "replication": "true",
        "application_name": "pitr doctor",
    }
    try:
        with psycopg.connect(make_conninfo("", **options), autocommit=True) as connection:
            # The low level: without a database the session has no encoding, so that psycopg's text is bytes.
            answer = connection.pgconn.exec_(b"IDENTIFY_SYSTEM")
            identifier = (answer.get_value(0, 0) or b"").decode("ascii", "replace")
    except psycopg.Error as error:
        message = " ".join(str(error).split())
        hint = 'add a line for database "replication" and this role to pg_hba.conf, and reload'
        return Finding(check, Severity.FAIL, "server", message, hint)
    if identifier != probe.facts.get("system_identifier"):
        return Finding(
            check,
            Severity.FAIL,
            "server",
            "the two connections reach different clusters",
            "check the dsn's hosts",
        )
    return Finding(check, Severity.OK, "server", f"streams for system identifier {identifier}")


def judge_data_directory(data_directory: str | None, may_access: Callable[[Path, int], bool]) -> Finding:
    """Tell whether this host and user can read the data directory's files, as a base backup must."""
    check = "server.data_directory"
    if data_directory is None:
        return Finding(check, Severity.FAIL, "server", "unknown", "GRANT pg_read_all_settings to the role")
    control = Path(data_directory) / "global" / "pg_control"
    if may_access(control, os.R_OK):
        return Finding(check, Severity.OK, data_directory, "readable")
    hint = "run pitr on the database host, as the user who owns the data directory"
    return Finding(check, Severity.FAIL, data_directory, "cannot be read from here", hint)
