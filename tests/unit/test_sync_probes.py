"""What the doctor says of commits that wait for us, case by case."""

from __future__ import annotations

import pytest

from pitr.postgres.sync_names import SyncNames
from pitr.postgres.sync_standby import CommitLevel, Rights, SyncSetting
from pitr.protection import Protect
from verifiers.base import Severity
from verifiers.sync_probes import SyncDuty, SyncProbe, judge_synchronous

ALL = Rights(may_alter=True, may_reload=True)
OK, WARN, FAIL = Severity.OK, Severity.WARN, Severity.FAIL


def judged(
    names: str,
    commit: str = "on",
    *,
    protect: Protect = Protect.DATA,
    rights: Rights = ALL,
    sees_waits: bool = True,
    is_ours: bool = True,
    is_co_located: bool = True,
    is_watched: bool = True,
) -> dict[str, tuple[Severity, str]]:
    setting = SyncSetting(names, is_ours, is_ours, "postgresql.conf", commit)
    probe = SyncProbe(setting, SyncNames.parse(names), rights, sees_waits, "keeper")
    duty = SyncDuty("pitr", protect, is_co_located, is_watched)
    return {one.id: (one.severity, f"{one.message}; {one.hint}") for one in judge_synchronous(probe, duty)}


@pytest.mark.parametrize(
    ("names", "commit", "check", "severity", "says"),
    [
        ("", "on", "server.synchronous", OK, "do not wait for us"),
        ("replica1", "remote_apply", "server.synchronous", OK, "do not wait for us"),
        ("pitr", "on", "server.synchronous", WARN, "however long"),
        ("PITR", "remote_apply", "server.synchronous_commit", FAIL, "wait for ever"),
        ("ANY 2 (pitr, replica1)", "remote_apply", "server.synchronous_commit", FAIL, "wait for ever"),
        ("ANY 1 (pitr, replica1)", "remote_apply", "server.synchronous_commit", WARN, "the others"),
        ("ANY 1 (pitr, replica1)", "on", "server.synchronous", WARN, "need not be in any region"),
        ("replica1, pitr", "on", "server.synchronous", WARN, "the first of them"),
        ("ANY 2 (pitr, replica1)", "on", "server.synchronous", WARN, "wait for the regions"),
        ("*", "on", "server.synchronous", WARN, "wait for the regions"),
        ("pitr", "remote_write", "server.synchronous_commit", WARN, "memory of the host that the server"),
        ("pitr", "local", "server.synchronous_commit", OK, "wait for nobody"),
    ],
)
def test_what_a_commit_is_worth_is_said(
    names: str, commit: str, check: str, severity: Severity, says: str
) -> None:
    found = judged(names, commit)
    assert found[check][0] is severity
    assert says in found[check][1]


def test_what_a_role_or_a_database_has_of_its_own_is_judged_too() -> None:
    levels = (
        CommitLevel("app", None, "remote_apply"),
        CommitLevel("app", "shop", "remote_write"),
        CommitLevel(None, "log", "local"),
    )
    setting = SyncSetting("pitr", True, True, "postgresql.conf", "on")
    probe = SyncProbe(setting, SyncNames.parse("pitr"), ALL, True, "keeper", levels)
    found = [
        one
        for one in judge_synchronous(probe, SyncDuty("pitr", Protect.DATA, True, True))
        if one.id == "server.synchronous_commit"
    ]
    assert [(one.severity, one.subject) for one in found] == [
        (FAIL, 'role "app"'),
        (WARN, 'role "app" in database "shop"'),
    ]
    assert "wait for ever" in found[0].message


def test_memory_of_another_host_is_worth_something() -> None:
    assert judged("pitr", "remote_write", is_co_located=False)["server.synchronous_commit"][0] is OK


def test_under_data_nothing_is_asked_for_a_release() -> None:
    nothing = Rights(may_alter=False, may_reload=False)
    found = judged("pitr", rights=nothing, sees_waits=False, is_ours=False, is_watched=False)
    assert set(found) == {"server.synchronous"}


def test_under_primary_each_thing_that_keeps_commits_from_being_released_is_a_failure() -> None:
    nothing = Rights(may_alter=False, may_reload=False)
    found = judged(
        "pitr",
        protect=Protect.PRIMARY,
        rights=nothing,
        sees_waits=False,
        is_ours=False,
        is_watched=False,
    )
    failed = {check for check, (severity, _) in found.items() if severity is FAIL}
    assert failed == {
        *("server.grant.waits", "server.grant.release", "server.grant.reload"),
        *("server.release", "host.watchdog"),
    }
    assert (
        'GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO "keeper"'
        in found["server.grant.release"][1]
    )


def test_under_primary_with_all_of_it_only_the_fact_is_warned_of() -> None:
    found = judged("pitr", protect=Protect.PRIMARY)
    assert {check for check, (severity, _) in found.items() if severity is not OK} == {"server.synchronous"}
    assert found["host.watchdog"][0] is OK


def test_who_waits_for_others_too_needs_no_watchdog() -> None:
    found = judged("ANY 1 (pitr, replica1)", protect=Protect.PRIMARY, is_watched=False)
    assert "host.watchdog" not in found
