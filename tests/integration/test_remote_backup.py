"""Base backups over the replication protocol: full, the server's own increments, tablespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fix_cli import wait_until
from fix_increment import SUMMARIES, Chain
from fix_postgres import PostgresFactory, PostgresHouse
from fix_restore import Judge

from pitr.backup_pace import Pace, PaceLimits
from pitr.errors import ServerRefused
from pitr.layout import ArchiveId
from pitr.postgres.installation import Installation
from pitr.postgres.server_user import as_user, hand_over
from pitr.rot_signals import is_alarming, rot_signals
from pitr.wal.timeline import TimelineId


def test_full_and_incremental_backups_over_the_protocol_restore_exactly(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    server = postgres_factory(pg_installation.major, settings=SUMMARIES, name="remote")
    space = server_tmp_path / "space"
    space.mkdir()
    hand_over(space, postgres_house.user)
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    server.execute(f"CREATE TABLESPACE fast LOCATION '{space}'")
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat(md5(g::text), 20) AS t FROM generate_series(1, 20000) g"
    )
    server.execute("CREATE TABLE spaced (n int, t text) TABLESPACE fast")
    server.execute("INSERT INTO spaced SELECT g, repeat('s', 100) FROM generate_series(1, 5000) g")
    full = chain.back_up_remote()
    assert full.type == "full"
    assert [each.name for each in full.tablespaces] == ["fast"]
    newest = full
    if pg_installation.major >= 17:
        server.execute("UPDATE wide SET t = 'changed' WHERE id % 300 = 5")
        server.execute("DELETE FROM wide WHERE id > 15000")
        server.execute("VACUUM wide")
        server.execute("CREATE TABLE another AS SELECT 1 AS one")
        newest = chain.back_up_remote()
        assert (newest.type, newest.parent) == ("incr", full.backup), chain.house.progress[-1].notes
        assert chain.stored_bytes(newest) < chain.stored_bytes(full)
        # Of the time since the parent too: only so it is seen that the server came from there.
        assert chain.archiver.asked[-1] == (newest.timeline, full.start_lsn, newest.stop_lsn)
    moment = chain.moments[-1]
    plan = chain.restores.plan(chain.target(moment), backup=newest.backup)
    target, moved = server_tmp_path / "restored", server_tmp_path / "moved"
    oid = str(full.tablespaces[0].oid)
    chain.restores.restore(
        chain.restores.request(plan, target, server, verify_files=True, tablespace_mapping={oid: moved})
    )
    assert judge.examine(server, target) == moment.tables


def test_an_increment_over_the_protocol_goes_on_after_a_promotion(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> None:
    server = postgres_factory(17, settings=SUMMARIES, name="promoted")
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat('x', 300) AS t FROM generate_series(1, 9000) g"
    )
    full = chain.back_up_remote()
    server.execute("UPDATE wide SET t = 'before the promotion' WHERE id % 500 = 1")
    server.stop()
    (server.data_dir / "standby.signal").touch()
    hand_over(server.data_dir / "standby.signal", postgres_house.user)
    server.start(SUMMARIES)
    server.instance.promote()
    chain.archiver.follow(TimelineId(2))
    server.execute("UPDATE wide SET t = 'after the promotion' WHERE id % 500 = 2")
    across = chain.back_up_remote()
    assert (across.type, across.timeline) == ("incr", TimelineId(2)), chain.house.progress[-1].notes
    assert chain.archiver.asked[-1] == (TimelineId(2), full.start_lsn, across.stop_lsn)
    moment, target = chain.moments[-1], server_tmp_path / "restored"
    plan = chain.restores.plan(chain.target(moment), backup=across.backup)
    chain.restores.restore(chain.restores.request(plan, target, server, verify_files=True))
    assert judge.examine(server, target) == moment.tables


def test_without_the_servers_manifest_of_the_parent_the_backup_is_full(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, settings=SUMMARIES, name="forgetful")
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    chain.back_up_remote()
    shutil.rmtree(chain.notes_dir)
    assert chain.back_up_remote().type == "full"
    assert any("no incremental one" in note for note in chain.house.progress[-1].notes)


def test_what_the_server_sends_is_taken_at_a_rate_that_can_be_changed_meanwhile(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, settings=SUMMARIES, name="slow")
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    pace = Pace(PaceLimits(64 << 10, 1))
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(chain.take_remote, None, None, pace)
        wait_until(lambda: any(seen.phase == "copying" for seen in chain.house.progress), "it copies")
        # Of some 30 MiB, which take a second at full speed.
        time.sleep(3)
        assert not running.done()
        assert chain.house.progress[-1].bytes_done < 1 << 20
        pace.change(PaceLimits(None, 1))
        assert running.result(120).size_bytes > 20 << 20


def test_another_cluster_is_refused(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, settings=SUMMARIES, name="other")
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    with pytest.raises(ServerRefused, match="another cluster"):
        chain.take_remote(None, ArchiveId(12345, 1))


def test_without_wal_summaries_the_backup_is_full_and_says_why(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, settings=SUMMARIES, name="unsummarized")
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    chain.back_up_remote()
    server.stop()
    server.start({**SUMMARIES, "summarize_wal": "off"})
    server.execute("CREATE TABLE later AS SELECT 1 AS one")
    assert chain.back_up_remote().type == "full"
    notes = chain.house.progress[-1].notes
    assert any("no incremental one" in note and "summar" in note for note in notes), notes


def test_after_checksums_were_switched_the_backup_is_full_and_says_why(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> None:
    """The server builds on any parent, and its WAL names none of the pages that pg_checksums changed."""
    server = postgres_factory(17, settings=SUMMARIES, name="switched")
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    server.execute("CREATE TABLE wide AS SELECT g AS id, md5(g::text) AS t FROM generate_series(1, 20000) g")

    def switch(option: str) -> None:
        server.stop()
        prefix, options = as_user(postgres_house.user)
        tool = str(server.instance.installation.tool("pg_checksums"))
        words = [*prefix, tool, option, "-D", str(server.data_dir)]
        subprocess.run(words, check=True, capture_output=True, timeout=120, cwd="/", **options)
        server.start(SUMMARIES)

    switch("--disable")
    assert not chain.back_up_remote().page_checksums
    switch("--enable")
    taken = chain.back_up_remote()
    assert (taken.type, taken.page_checksums) == ("full", True)
    assert any("data checksums were off at backup" in note for note in chain.house.progress[-1].notes)
    moment, target = chain.moments[-1], server_tmp_path / "restored"
    plan = chain.restores.plan(chain.target(moment), backup=taken.backup)
    chain.restores.restore(chain.restores.request(plan, target, server, verify_files=True))
    assert judge.examine(server, target) == moment.tables


def test_pages_of_noise_and_files_of_nobody_are_seen_over_the_protocol(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, settings=SUMMARIES, name="attacked")
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    server.execute("CREATE TABLE letters AS SELECT g, repeat('patient', 60) FROM generate_series(1, 20000) g")
    server.execute("CHECKPOINT")
    file = server.data_dir / str(server.value("SELECT pg_relation_filepath('letters')"))
    size_bytes = file.stat().st_size
    with file.open("r+b") as stream:
        stream.write(os.urandom(size_bytes))
    (file.parent / "HOW_TO_GET_YOUR_DATA_BACK.txt").write_text("pay")
    attacked = chain.take_remote(None)
    assert [page.block for page in attacked.findings] == list(range(size_bytes // 8192))
    assert [Path(path).name for path in attacked.signs.alien_files] == ["HOW_TO_GET_YOUR_DATA_BACK.txt"]
    assert str(file.relative_to(server.data_dir)) in {sign.path for sign in attacked.signs.relations}
    assert is_alarming(rot_signals(attacked, []))
