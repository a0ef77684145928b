"""Probes of synchronous replication: what an acknowledged commit is worth, and who could hold it up.

Asks in a session of its own, and changes nothing.  What is said here is explained in docs/synchronous.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pitr.errors import MalformedValue, ServerRefused, ServerUnavailable
from pitr.postgres.sync_names import SyncMethod, SyncNames
from pitr.postgres.sync_standby import GRANTS, CommitLevel, Rights, SyncSetting, SyncStandby, standby_name
from pitr.protection import Protect
from verifiers.base import Finding, Severity

_CHECK: Final = "server.synchronous"
_PAGE: Final = "docs/synchronous.md"
# With these a commit waits for nobody else.
_ALONE: Final = frozenset({"off", "local"})
# What a role or a database is told of; with the others it is a choice that it may make.
_WORSE: Final = frozenset({"remote_write", "remote_apply"})


@dataclass(frozen=True, slots=True)
class SyncProbe:
    """What one look found, before it is judged.  ``names`` is None if PostgreSQL itself would refuse it."""

    setting: SyncSetting
    names: SyncNames | None
    rights: Rights
    sees_waits: bool
    role: str
    levels: tuple[CommitLevel, ...] = ()


@dataclass(frozen=True, slots=True)
class SyncDuty:
    """What the configuration asks for; ``is_watched`` if a watchdog works on the state directory now."""

    application_name: str
    protect: Protect
    is_co_located: bool
    is_watched: bool


def probe_synchronous(dsn: str, duty: SyncDuty) -> list[Finding]:
    """Look at the server, and judge what commits wait for."""
    try:
        session = SyncStandby.connect(dsn)
        try:
            setting = session.setting()
            probe = SyncProbe(
                setting,
                _parsed(setting.names),
                session.rights(),
                not session.waiting().is_hidden,
                session.role(),
                session.levels(),
            )
        finally:
            session.close()
    except (ServerRefused, ServerUnavailable) as error:
        return [Finding(_CHECK, Severity.WARN, "server", error.message, error.hint)]
    return list(judge_synchronous(probe, duty))


def duty_of(dsn: str, protect: Protect, *, is_co_located: bool, is_watched: bool) -> SyncDuty:
    """Return what is asked for of a daemon that streams with this connection string."""
    return SyncDuty(standby_name(dsn), protect, is_co_located, is_watched)


def judge_synchronous(probe: SyncProbe, duty: SyncDuty) -> Iterator[Finding]:
    """Yield what there is to say.  Pure."""
    names = probe.names
    if names is None or not names.names_standby(duty.application_name):
        yield _finding(Severity.OK, "commits do not wait for us")
        return
    others = [name for name in names.names if name.lower() != duty.application_name.lower()]
    is_needed = "*" in others or names.hang_without(duty.application_name, others)
    yield from _judge_level("server", probe.setting.commit, duty, is_needed=is_needed)
    for level in probe.levels:
        if level.commit in _WORSE:
            yield from _judge_level(str(level), level.commit, duty, is_needed=is_needed)
    if probe.setting.commit not in _ALONE:
        yield _judge_names(probe.setting.names, names, duty, is_needed=is_needed)
    if duty.protect is Protect.PRIMARY:
        yield from _judge_release(probe, duty, is_needed=is_needed)


def _judge_level(subject: str, level: str, duty: SyncDuty, *, is_needed: bool) -> Iterator[Finding]:
    check = "server.synchronous_commit"
    text = f"synchronous_commit = {level}" + ("" if subject == "server" else f" of {subject}")
    if level == "remote_apply":
        severity = Severity.FAIL if is_needed else Severity.WARN
        yield Finding(
            check,
            severity,
            subject,
            text
            + ": an archive applies nothing, so commits wait for "
            + ("ever" if is_needed else "the others"),
            "use synchronous_commit = on, which waits until WAL is durable in the regions",
        )
    elif level == "remote_write" and duty.is_co_located:
        yield Finding(
            check,
            Severity.WARN,
            subject,
            text + ": it is acknowledged from the memory of the host that the server runs on",
            "it is lost with that host: run the daemon elsewhere, or use synchronous_commit = on",
        )
    elif level == "remote_write":
        message = text + ": it is acknowledged from the memory of the daemon's host, before it is in a region"
        yield Finding(check, Severity.OK, subject, message)
    elif level in _ALONE:
        yield Finding(check, Severity.OK, subject, text + ": commits wait for nobody unless they ask to")


def _judge_names(value: str, names: SyncNames, duty: SyncDuty, *, is_needed: bool) -> Finding:
    text = f"synchronous_standby_names = '{value}'"
    if is_needed:
        policy = (
            "commits wait for the regions, however long they are away"
            if duty.protect is Protect.DATA
            else f'commits wait for the regions, and under protect = "{duty.protect}" not for ever'
        )
        return _finding(Severity.WARN, f"{text}: {policy}", f"see that this is what you want: {_PAGE}")
    whose = "any of them" if names.method is SyncMethod.ANY else "the first of them"
    return _finding(
        Severity.WARN,
        f"{text}: {whose} acknowledges, so a commit need not be in any region when it returns",
        f"for that, commits must wait for us by name, and alone or in addition: {_PAGE}",
    )


def _judge_release(probe: SyncProbe, duty: SyncDuty, *, is_needed: bool) -> Iterator[Finding]:
    """Yield what keeps commits from being released when the daemon is dead."""
    granted = (
        ("server.grant.waits", probe.sees_waits, "see which commits wait"),
        ("server.grant.release", probe.rights.may_alter, "alter synchronous_standby_names"),
        ("server.grant.reload", probe.rights.may_reload, "reload the configuration"),
    )
    for (check, good, text), grant in zip(granted, GRANTS, strict=True):
        message = f"role {probe.role} may {'' if good else 'not '}{text}"
        quoted = '"' + probe.role.replace('"', '""') + '"'
        hint = None if good else grant.format(role=quoted)
        yield Finding(check, Severity.OK if good else Severity.FAIL, "server", message, hint)
    if not probe.setting.is_ours_to_change:
        message = (
            f"synchronous_standby_names stands in {probe.setting.stands_in}, over which nothing can be set"
        )
        hint = "move it to postgresql.conf, or ALTER SYSTEM SET it; GRANT pg_read_all_settings to the role"
        yield Finding("server.release", Severity.FAIL, "server", message, hint)
    if is_needed and not duty.is_watched:
        message = "no watchdog runs: when the daemon is dead, commits wait until somebody acts"
        yield Finding("host.watchdog", Severity.FAIL, "watchdog", message, "start it: pitr watchdog")
    elif is_needed:
        yield Finding("host.watchdog", Severity.OK, "watchdog", "a watchdog runs")


def _parsed(text: str) -> SyncNames | None:
    try:
        return SyncNames.parse(text)
    except MalformedValue:
        return None


def _finding(severity: Severity, message: str, hint: str | None = None) -> Finding:
    return Finding(_CHECK, severity, "server", message, hint)
