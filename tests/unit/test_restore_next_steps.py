"""What a restore says comes next: words that can be typed as they are."""

from __future__ import annotations

import shlex
from pathlib import Path

import fix_archive as fix

from pitr.postgres.installation import Installation
from pitr.recover import Recovered, RestoreAction
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan
from pitr.restore_request import RestoreRequest, next_steps
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

TARGET = Path("/srv/my data/main")
PLAN = RestorePlan(
    RecoveryTarget("latest"),
    fix.archive_of(1),
    TimelineId(1),
    fix.backup_of(LSN(0x3000040), LSN(0x3000400), stopped_at=fix.at_second(1)),
    (),
    (),
    (),
    is_past_end=False,
)


def steps(action: RestoreAction, done: Recovered | None, installation: Installation | None) -> str:
    request = RestoreRequest(PLAN, TARGET, action, installation, ())
    return "\n".join(next_steps(request, done, TARGET))


def test_whoever_starts_it_is_told_how_to_promote_it_and_of_the_originals_port() -> None:
    said = steps("none", None, None)
    assert f"pg_ctl -D {shlex.quote(str(TARGET))} start" in said
    assert f"pg_ctl -D {shlex.quote(str(TARGET))} promote" in said
    assert "another port and other sockets" in said


def test_a_paused_server_is_promoted_with_the_programs_that_it_runs_on() -> None:
    done = Recovered(LSN(0x3000400), None, TimelineId(1), 1.0, 0.0, has_paused=True)
    said = steps("pause", done, Installation(Path("/usr/pgsql/bin"), 17, "17.6"))
    assert f"/usr/pgsql/bin/pg_ctl -D {shlex.quote(str(TARGET))} promote" in said
