"""Backups that are kind to a real server: no faster than allowed, of low priority, and paused for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from fix_backup import BackupHouse, fill, house_for, in_thread, threads_left
from fix_cli import wait_until
from fix_postgres import PostgresFactory, RunningPostgres

from pitr.backup_pace import Pace, PaceLimits
from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import BackupFailed
from pitr.postgres.server_user import hand_over
from pitr.priority import Priority
from pitr.strain import StrainBounds
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

MIB = 1 << 20
PRIMARY = {"wal_keep_size": "512MB"}


def size_of(server: RunningPostgres) -> int:
    return sum(path.stat().st_size for path in (server.data_dir / "base").rglob("*") if path.is_file())


def done_bytes(house: BackupHouse) -> int:
    return house.progress[-1].bytes_done if house.progress else 0


def test_a_backup_reads_no_faster_than_the_limit_until_the_limit_is_raised(
    postgres_factory: PostgresFactory,
) -> None:
    source = postgres_factory()
    fill(source)
    size = size_of(source)
    assert size > 20 * MIB
    house, pace = house_for(source), Pace(PaceLimits(2.0 * MIB, 2))
    begun_s = time.monotonic()
    outcome = in_thread(lambda: house.back_up(source.dsn, pace=pace))
    wait_until(lambda: done_bytes(house) > 4 * MIB, "four MiB are read")
    # What is counted is read; what was read may not be counted yet.
    assert done_bytes(house) <= 2 * MIB * (time.monotonic() - begun_s + 1) + 2 * MIB
    assert size - done_bytes(house) > 8 * MIB
    pace.change(PaceLimits(None, 1))
    raised_s = time.monotonic()
    assert isinstance(outcome(), BackupManifest)
    # At the old rate the rest would have taken so long.
    assert time.monotonic() - raised_s < max(20.0, (size - 12 * MIB) / (2 * MIB))


class MeetingPace(Pace):
    """Lets nobody read before two are about to: where one waits for the other to end they never meet."""

    def __init__(self, limits: PaceLimits) -> None:
        super().__init__(limits)
        self._barrier = threading.Barrier(2)
        self.has_met = False

    def spend(self, size_bytes: int, stop: threading.Event) -> None:
        """Wait for the other reader, once, and then as any pace."""
        if not self.has_met:
            with suppress(threading.BrokenBarrierError):
                self._barrier.wait(30)
                self.has_met = True
        super().spend(size_bytes, stop)


def test_two_threads_copy_at_once_with_a_lower_priority_and_nobody_else_has_it(
    postgres_factory: PostgresFactory,
) -> None:
    source = postgres_factory()
    fill(source, 20_000)
    house, pace = house_for(source), MeetingPace(PaceLimits(1.0 * MIB, 2))
    cancel = threading.Event()
    outcome = in_thread(
        lambda: house.back_up(source.dsn, pace=pace, priority=Priority(15, "idle"), cancel=cancel)
    )

    def nices() -> dict[str, int]:
        return {
            thread.name: os.getpriority(os.PRIO_PROCESS, thread.native_id)
            for thread in threading.enumerate()
            if thread.native_id is not None
        }

    wait_until(lambda: list(nices().values()).count(15) == 2, "both threads have their priority")
    assert {name for name, nice in nices().items() if nice == 15} == {"backup-copy-1", "backup-copy-2"}
    wait_until(lambda: pace.has_met, "both read at the same time", timeout_s=40)
    cancel.set()
    assert isinstance(outcome(), BackupFailed)
    assert threads_left() == []


def held(house: BackupHouse) -> str | None:
    return house.progress[-1].paused if house.progress else None


def hang_commits(server: RunningPostgres) -> None:
    """Have every commit wait for a synchronous standby that is not there."""
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    server.execute("SELECT pg_reload_conf()")


def slow_pace() -> Pace:
    """A pace at which a backup takes long enough to be watched."""
    return Pace(PaceLimits(1.0 * MIB, 2))


def stands_still(house: BackupHouse) -> bool:
    before = done_bytes(house)
    time.sleep(1.5)
    return done_bytes(house) == before


def test_slow_commits_pause_the_copying_until_they_are_quick_again(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    fill(source)
    house, pace = house_for(source), slow_pace()
    bounds = StrainBounds(latency_s=2.0)
    outcome = in_thread(lambda: house.back_up(source.dsn, pace=pace, strain=bounds))
    wait_until(lambda: done_bytes(house) > 0, "it copies")
    hang_commits(source)
    wait_until(lambda: held(house) is not None, "it pauses")
    assert "a commit takes" in str(held(house))
    assert stands_still(house)
    source.execute("ALTER SYSTEM RESET synchronous_standby_names")
    source.execute("SELECT pg_reload_conf()")
    wait_until(lambda: held(house) is None, "it goes on")
    pace.change(PaceLimits(None, 2))
    manifest = outcome()
    assert isinstance(manifest, BackupManifest)
    assert house.progress[-1].notes == ()
    house.all_lines(manifest)


def standby_of(factory: PostgresFactory, primary: RunningPostgres) -> RunningPostgres:
    """A standby, in the place of a cluster that was made for it."""
    installation = primary.instance.installation
    standby = factory(installation.major, name="standby")
    standby.stop()
    shutil.rmtree(standby.data_dir)
    words = [
        installation.tool("pg_basebackup"),
        "-d",
        primary.dsn,
        "-D",
        standby.data_dir,
        "-R",
        "-c",
        "fast",
    ]
    subprocess.run(words, check=True, timeout=120)
    hand_over(standby.data_dir, primary.instance.user)
    standby.start()
    return standby


@pytest.mark.parametrize(
    "bounds", [pytest.param(StrainBounds(lag_bytes=4 * MIB), marks=pytest.mark.slow), StrainBounds(lag_s=2.0)]
)
def test_a_standby_that_lags_pauses_the_copying_until_it_has_caught_up(
    postgres_factory: PostgresFactory, bounds: StrainBounds
) -> None:
    source = postgres_factory(17, PRIMARY)
    fill(source)
    standby = standby_of(postgres_factory, source)
    house, pace = house_for(source), slow_pace()
    outcome = in_thread(lambda: house.back_up(source.dsn, pace=pace, strain=bounds))
    wait_until(lambda: done_bytes(house) > 0, "it copies")
    assert held(house) is None
    standby.execute("SELECT pg_wal_replay_pause()")
    source.execute("CREATE TABLE more AS SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g")
    wait_until(lambda: held(house) is not None, "it pauses")
    assert "behind" in str(held(house))
    assert stands_still(house)
    standby.execute("SELECT pg_wal_replay_resume()")
    wait_until(lambda: held(house) is None, "it goes on")
    pace.change(PaceLimits(None, 2))
    assert isinstance(outcome(), BackupManifest)


def test_a_pause_that_does_not_end_fails_the_backup(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    fill(source)
    hang_commits(source)
    house, pace = house_for(source), slow_pace()
    with pytest.raises(BackupFailed, match="paused for more than 2 s"):
        house.back_up(source.dsn, pace=pace, strain=StrainBounds(latency_s=2.0), pause_max_s=2.0)
    assert house.listed() == []
    assert threads_left() == []
    # The next one begins unpaused.
    assert pace.pause is None


@pytest.mark.slow
def test_a_role_that_cannot_see_standbys_is_told_so(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory(17, PRIMARY)
    fill(source, 1000)
    standby_of(postgres_factory, source)
    source.execute("CREATE ROLE keeper LOGIN REPLICATION; GRANT pg_read_all_settings TO keeper")
    source.execute("GRANT EXECUTE ON FUNCTION pg_backup_start(text, bool) TO keeper")
    source.execute("GRANT EXECUTE ON FUNCTION pg_backup_stop(bool) TO keeper")
    source.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO keeper")
    house = house_for(source)
    looked = threading.Event()

    def wait(_timeline: TimelineId, _start: LSN, _end: LSN, _timeout_s: float) -> bool:
        return looked.is_set()

    notes: Callable[[], tuple[str, ...]] = lambda: house.progress[-1].notes if house.progress else ()  # noqa: E731
    outcome = in_thread(
        lambda: house.back_up(
            source.dsn.replace("user=postgres", "user=keeper"),
            strain=StrainBounds(lag_bytes=MIB),
            pace=slow_pace(),
            wait_for_wal=wait,
        )
    )
    wait_until(lambda: any("pg_monitor" in note for note in notes()), "it is told")
    looked.set()
    assert isinstance(outcome(), BackupManifest)


def test_a_standby_itself_is_backed_up_and_says_that_no_commit_can_be_measured(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    source = postgres_factory(17, PRIMARY)
    fill(source, 1000)
    standby = standby_of(postgres_factory, source)
    house = house_for(standby)
    manifest = house.back_up(
        standby.dsn, strain=StrainBounds(latency_s=0.1), pace=Pace(PaceLimits(8.0 * MIB, 2))
    )
    assert any("on a standby" in note for note in house.progress[-1].notes)
    house.restore(manifest, tmp_path / "restored")
