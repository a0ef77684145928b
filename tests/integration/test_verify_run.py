"""A whole verification on a real server: restored, judged by every check, measured, and wiped."""

from __future__ import annotations

from pathlib import Path

from fix_postgres import PostgresFactory
from fix_restore import HISTORY_SETTINGS, make_history
from fix_verify import outcome_of, put_head, run_verification

from pitr.postgres.server_user import ServerUser
from storage.memory import MemoryStore
from verifiers.check import Outcome, overall


def test_a_sound_archive_passes_every_required_check_and_leaves_nothing(
    postgres_factory: PostgresFactory, server_user_or_none: ServerUser | None, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, HISTORY_SETTINGS)
    history = make_history(server, server_user_or_none, MemoryStore())
    put_head(history)
    found = run_verification(history, server_tmp_path)
    for one in found.checks:
        print(one.id, one.outcome, one.expected, "|", one.observed, "|", one.reason, one.duration_ms)
    print(found.marks, found.recovery_time_ms, found.failure)
    assert found.failure is None
    assert overall(found.checks) is Outcome.PASSED
    assert list((server_tmp_path / "scratch").glob("0*")) == []
    assert outcome_of(found, "C11").outcome is Outcome.SKIPPED
