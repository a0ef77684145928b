"""PostgreSQL's archiver, judged: is it set as the source of WAL wants it, and does it get on?  Pure.

Reference: PostgreSQL manual, "pg_stat_archiver", "archive_mode"; majors 15 to 18.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from verifiers.base import Finding, Severity

# pg_settings shows this for archive_mode = off, and an empty text before it is set.
_UNSET = frozenset({"", "(disabled)"})
_SET_HINT = "pitr wal gate says how to set it"


@dataclass(frozen=True, slots=True)
class ArchiverWish:
    """What the configuration wants: ``is_source``: all WAL comes from ``command``."""

    command: str
    is_source: bool


def judge_archiver(
    settings: Mapping[str, str],
    stats: Mapping[str, Any],
    wish: ArchiverWish,
    *,
    is_standby: bool,
    has_slot: bool,
) -> Iterator[Finding]:
    """Yield findings on the settings, and on how the last attempt went."""
    mode, command = settings["archive_mode"], settings.get("archive_command", "")
    is_ours = command == wish.command
    yield _settings(settings, wish, is_standby=is_standby)
    if wish.is_source and has_slot:
        hint = "SELECT pg_drop_replication_slot of it: nothing is streamed, so it keeps WAL for ever"
        yield Finding("server.archive.slot", Severity.FAIL, "server", "the replication slot is there", hint)
    if mode == "off" or not (is_ours or wish.is_source):
        return
    failed, done = stats.get("last_failed_time"), stats.get("last_archived_time")
    if failed is not None and (done is None or failed > done):
        yield Finding(
            "server.archive.failing",
            Severity.FAIL if wish.is_source else Severity.WARN,
            "server",
            f"archive_command fails on {stats.get('last_failed_wal')} since it last succeeded",
            "the server's log has the gate's reason; is the daemon running?",
        )
    else:
        last = stats.get("last_archived_wal") or "nothing yet"
        yield Finding("server.archive.failing", Severity.OK, "server", f"archived last: {last}")


def _settings(settings: Mapping[str, str], wish: ArchiverWish, *, is_standby: bool) -> Finding:
    check, mode = "server.archive.settings", settings["archive_mode"]
    command, library = settings.get("archive_command", ""), settings.get("archive_library", "")

    def found(severity: Severity, message: str, hint: str | None = None) -> Finding:
        return Finding(check, severity, "server", message, hint)

    if not wish.is_source:
        if mode == "off":
            return found(Severity.OK, "archive_mode = off: WAL is streamed")
        if library in _UNSET and command in _UNSET:
            hint = f"{_SET_HINT}, or set archive_mode = off"
            return found(Severity.WARN, "there is no archive_command: pg_wal grows for ever", hint)
        whose = "the gate" if command == wish.command else "something else than the gate"
        return found(Severity.OK, f"archive_mode = {mode}, archive_command is {whose}; WAL is streamed")
    if mode == "off":
        return found(
            Severity.FAIL, "archive_mode = off, and [wal] source is archive: no WAL comes", _SET_HINT
        )
    if library not in _UNSET or command != wish.command:
        return found(
            Severity.FAIL, "archive_command is not the gate, and all WAL is to come by it", _SET_HINT
        )
    if is_standby and mode != "always":
        hint = "ALTER SYSTEM SET archive_mode = 'always', then restart the server"
        return found(Severity.WARN, "a standby archives nothing with archive_mode = on", hint)
    if settings.get("archive_timeout", "0") == "0":
        hint = "ALTER SYSTEM SET archive_timeout = '60s': what is in no full segment is not archived"
        return found(Severity.WARN, "archive_timeout = 0: a quiet server hands over nothing", hint)
    return found(Severity.OK, f"archive_mode = {mode}, archive_command is the gate")
