"""Chains of a server that lives: load, tablespaces, new databases, a promotion, summaries that are gone."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fix_increment import SUMMARIES, Chain
from fix_postgres import SUMMARIES_SINCE, PostgresFactory, PostgresHouse, RunningPostgres, table_digests
from fix_restore import Judge

from pitr.backup_parent import ParentBackup, read_note
from pitr.layout import ArchiveId
from pitr.postgres.installation import Installation
from pitr.postgres.server_user import ServerUser, as_user, hand_over
from pitr.recovery import RecoveryTarget
from pitr.wal.timeline import TimelineId
from storage.local import DirectoryStore

LATEST = RecoveryTarget("latest")


def chain_of(
    server: RunningPostgres, house: PostgresHouse, folder: Path, *, compare_pages: bool = False
) -> Chain:
    store = DirectoryStore.create(folder / "store")
    return Chain(server, store, house.user, folder / "notes", compare_pages)


def notes_of(chain: Chain) -> str:
    """Return what was told; a reason is kept in the manifest too."""
    told = chain.house.progress[-1].notes
    newest = chain.moments[-1].backup
    assert all(f": {newest.full_because}" in note for note in told if note.startswith("a full backup and no"))
    return " ".join(told)


@contextmanager
def load(server: RunningPostgres, user: ServerUser | None) -> Iterator[None]:
    """Run transactions meanwhile."""
    prefix, options = as_user(user)
    tool = str(server.instance.installation.tool("pgbench"))
    where = ["-h", str(server.instance.socket_dir), "-p", str(server.port), "-U", "postgres"]
    words = [*prefix, tool, *where, "-n", "-c", "2", "-T", "600", "-R", "300", "postgres"]
    running = subprocess.Popen(
        words, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    try:
        yield
        assert running.poll() is None, "the load ended before the backups did"
    finally:
        running.terminate()
        running.wait(30)


def test_a_chain_under_load_restores_to_the_last_commit(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    server = postgres_factory(pg_installation.major, settings={**SUMMARIES, "autovacuum": "on"})
    space = server_tmp_path / "space"
    space.mkdir(mode=0o700)
    hand_over(space, postgres_house.user)
    server.execute(f"CREATE TABLESPACE fast LOCATION '{space}'")
    prefix, options = as_user(postgres_house.user)
    tool = str(pg_installation.tool("pgbench"))
    where = ["-h", str(server.instance.socket_dir), "-p", str(server.port), "-U", "postgres", "postgres"]
    words = [*prefix, tool, "-i", "-q", "-s", "2", "--tablespace=fast", *where]
    subprocess.run(words, check=True, capture_output=True, cwd="/", timeout=120, **options)
    chain = chain_of(server, postgres_house, server_tmp_path)
    with load(server, postgres_house.user):
        assert chain.back_up().type == "full"
        for number in range(4):
            server.execute(f"CREATE TABLE round_{number} TABLESPACE fast AS SELECT {number} AS n")
            assert chain.back_up().type == "incr", notes_of(chain)
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgbench'"
    )
    expected = table_digests(server.dsn)
    server.execute("CHECKPOINT")
    chain.archiver.ship()
    plan = chain.restores.plan(LATEST)
    assert (len(plan.parents), plan.backup.backup) == (4, chain.moments[-1].backup.backup)
    target = server_tmp_path / "restored"
    request = chain.restores.request(
        plan,
        target,
        server,
        tablespace_mapping={"fast": server_tmp_path / "moved"},
        verify_files=True,
    )
    chain.restores.restore(request)
    assert judge.examine(server, target) == expected


@pytest.mark.parametrize(
    ("major", "compare_pages"),
    [
        pytest.param(17, False, id="pg17-summaries"),
        pytest.param(18, True, id="pg18-pages"),
        pytest.param(15, True, id="pg15-pages", marks=pytest.mark.needs_apt),
        pytest.param(16, True, id="pg16-pages", marks=pytest.mark.slow),
    ],
)
def test_a_database_that_was_dropped_and_made_anew_under_its_number_is_the_new_one(
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
    major: int,
    compare_pages: bool,
) -> None:
    """The pages of the new one are older than the parent, and its files have the same names."""
    server = postgres_factory(major, settings=SUMMARIES)
    server.execute("CREATE DATABASE before OID = 50001")
    server.execute(
        "CREATE TABLE who AS SELECT 'before' AS name, g FROM generate_series(1, 2000) g", dbname="before"
    )
    server.execute("CHECKPOINT")
    server.execute("CREATE DATABASE after TEMPLATE before STRATEGY FILE_COPY")
    server.execute("UPDATE who SET name = 'after!'", dbname="after")
    server.execute("VACUUM FREEZE who", dbname="after")
    server.execute("CHECKPOINT")
    server.execute("CREATE DATABASE twin OID = 50003 TEMPLATE before STRATEGY FILE_COPY")
    chain = chain_of(server, postgres_house, server_tmp_path, compare_pages=compare_pages)
    assert chain.back_up().type == "full"
    server.execute("DROP DATABASE twin")
    server.execute("CREATE DATABASE twin OID = 50003 TEMPLATE after STRATEGY FILE_COPY")
    server.execute("CREATE DATABASE third TEMPLATE before STRATEGY FILE_COPY")
    assert chain.back_up().type == "incr", notes_of(chain)
    databases = ["postgres", "before", "after", "twin", "third"]
    expected = table_digests(server.dsn, databases)
    chain.archiver.ship()
    target = server_tmp_path / "restored"
    chain.restores.restore(
        chain.restores.request(chain.restores.plan(LATEST), target, server, verify_files=True)
    )
    assert judge.examine(server, target, databases) == expected
    assert expected["twin.public.who"] == expected["after.public.who"] != expected["before.public.who"]


@pytest.mark.mostly_17
def test_a_chain_goes_on_after_a_promotion_and_says_what_it_cannot_go_on_from(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    server = postgres_factory(pg_installation.major, settings=SUMMARIES)
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat('x', 300) AS text FROM generate_series(1, 9000) g"
    )
    chain = chain_of(server, postgres_house, server_tmp_path)
    assert chain.back_up().type == "full"
    server.execute("UPDATE wide SET text = 'on the first timeline' WHERE id % 500 = 0")
    assert chain.back_up().type == "incr"
    server.execute("UPDATE wide SET text = 'before the promotion' WHERE id % 500 = 1")
    server.stop()
    (server.data_dir / "standby.signal").touch()
    hand_over(server.data_dir / "standby.signal", postgres_house.user)
    server.start(SUMMARIES)
    server.instance.promote()
    chain.archiver.follow(TimelineId(2))
    server.execute("UPDATE wide SET text = 'after the promotion' WHERE id % 500 = 2")
    across = chain.back_up()
    assert (across.type, across.timeline) == ("incr", TimelineId(2)), notes_of(chain)
    # Of the time since the parent too: only so it is seen that the server came from there.
    before = chain.moments[-2].backup
    assert chain.archiver.asked[-1] == (TimelineId(2), before.start_lsn, across.stop_lsn)

    # A parent of a timeline that this server does not come from.
    note = read_note(chain.notes_dir, across.backup)
    assert note is not None
    stranger = ParentBackup(replace(across, timeline=TimelineId(7)), note)
    assert chain.back_up(parent=stranger).type == "full"
    assert "timeline 00000007 is not in the server's history" in notes_of(chain)
    other = ParentBackup(replace(chain.moments[-1].backup, page_checksums=not across.page_checksums), note)
    assert chain.back_up(parent=other).type == "full"
    assert "data checksums were" in notes_of(chain)
    older = ParentBackup(replace(chain.moments[-1].backup, server_version=140000), note)
    assert chain.back_up(parent=older).type == "full"
    assert "is of PostgreSQL 14" in notes_of(chain)
    foreign = replace(chain.moments[-1].backup, archive=ArchiveId(7, 1), packs=(), indexes=())
    assert chain.back_up(parent=ParentBackup(foreign, note)).type == "full"
    assert "is of another cluster" in notes_of(chain)

    # Without summaries there is a hole; it is named, and the next one is incremental again.
    if pg_installation.major >= SUMMARIES_SINCE:
        for summary in (server.data_dir / "pg_wal" / "summaries").iterdir():
            summary.unlink()
        server.execute("UPDATE wide SET text = 'without summaries' WHERE id % 500 = 3")
        assert chain.back_up().type == "full"
        assert "have a hole at" in notes_of(chain)
    server.execute("UPDATE wide SET text = 'with summaries' WHERE id % 500 = 4")
    assert chain.back_up().type == "incr", notes_of(chain)

    # Where the server writes none, pages are compared.
    server.stop()
    server.start({**SUMMARIES, "summarize_wal": "off"})
    server.execute("UPDATE wide SET text = 'by pages' WHERE id % 500 = 5")
    by_pages = chain.back_up()
    assert by_pages.type == "incr", notes_of(chain)
    assert dict(by_pages.settings).get("summarize_wal", "off") == "off"
    assert chain.stored_bytes(by_pages) < chain.stored_bytes(chain.moments[0].backup) / 2

    for number in (2, len(chain.moments) - 1):
        moment = chain.moments[number]
        target = server_tmp_path / f"restored-{number}"
        plan = chain.restores.plan(chain.target(moment), backup=moment.backup.backup)
        assert len(plan.parents) == 2
        chain.restores.restore(chain.restores.request(plan, target, server, verify_files=True))
        assert judge.examine(server, target) == moment.tables


@pytest.mark.mostly_17
def test_after_wal_level_minimal_the_backup_is_full_and_says_why_or_compares_pages(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    """What is written then is in no WAL, so no summary tells of it; but all of it is in new files."""
    server = postgres_factory(pg_installation.major, settings=SUMMARIES)
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 9000) g"
    )
    server.execute("CREATE TABLE other AS SELECT * FROM wide")
    chain = chain_of(server, postgres_house, server_tmp_path)
    assert chain.back_up().type == "full"
    server.stop()
    server.start({"wal_level": "minimal", "max_wal_senders": "0", "summarize_wal": "off"})
    server.execute("CREATE TABLE silent AS SELECT * FROM wide")
    server.execute("BEGIN; TRUNCATE other; INSERT INTO other SELECT id, 'anew' FROM wide; COMMIT")
    server.execute("CREATE INDEX ON wide (text)")
    server.execute("UPDATE wide SET text = 'minimal' WHERE id % 500 = 0")
    server.execute("CHECKPOINT")
    server.stop()
    server.start(SUMMARIES)
    if pg_installation.major >= SUMMARIES_SINCE:
        assert chain.back_up().type == "full"
        assert "WAL summaries of timeline 00000001 have a hole" in notes_of(chain)
    else:
        assert chain.back_up().type == "incr", notes_of(chain)
    moment, target = chain.moments[-1], server_tmp_path / "restored"
    plan = chain.restores.plan(chain.target(moment), backup=moment.backup.backup)
    chain.restores.restore(chain.restores.request(plan, target, server, verify_files=True))
    assert judge.examine(server, target) == moment.tables


@pytest.mark.slow
@pytest.mark.parametrize("compare_pages", [False, True], ids=["summaries", "pages"])
def test_a_table_of_more_than_one_segment_is_cut_and_grows_again(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
    compare_pages: bool,
) -> None:
    server = postgres_factory(
        pg_installation.major, settings={**SUMMARIES, "max_wal_size": "8GB", "autovacuum": "off"}
    )
    server.execute("CREATE TABLE huge (id int, text text)")
    fill = "INSERT INTO huge SELECT g, repeat(md5(g::text), 59) FROM generate_series(%s, %s) g"
    server.execute(fill, 1, 620_000)
    server.execute("CREATE INDEX ON huge (id)")
    assert int(str(server.value("SELECT pg_relation_size('huge')"))) > 1.1 * 1024**3
    chain = chain_of(server, postgres_house, server_tmp_path, compare_pages=compare_pages)
    full = chain.back_up()
    # What the first look marks is in the next one.
    chain.back_up()
    server.execute("UPDATE huge SET text = 'x' WHERE id % 20000 = 0")
    small = chain.back_up()
    assert chain.stored_bytes(small) < chain.stored_bytes(full) / 5
    server.execute("DELETE FROM huge WHERE id > 400000")
    second = server.data_dir / (str(server.value("SELECT pg_relation_filepath('huge')")) + ".1")
    for _ in range(20):
        # It leaves the end alone while somebody still sees the rows, or holds a lock.
        server.execute("VACUUM (TRUNCATE true) huge")
        if int(str(server.value("SELECT pg_relation_size('huge')"))) <= 1 << 30:
            break
        time.sleep(0.5)
    # Cut across the boundary, the file stays, and is empty.
    chain.back_up()
    assert second.stat().st_size == 0
    server.execute(fill, 700_000, 900_000)
    chain.back_up()
    assert second.stat().st_size > 0
    assert [each.backup.type for each in chain.moments] == ["full", "incr", "incr", "incr", "incr"]
    for moment in chain.moments[-2:]:
        target = server_tmp_path / f"restored-{moment.backup.backup}"
        plan = chain.restores.plan(chain.target(moment), backup=moment.backup.backup)
        chain.restores.restore(chain.restores.request(plan, target, server, verify_files=True))
        assert judge.examine(server, target) == moment.tables
        shutil.rmtree(target)


@pytest.mark.slow
def test_a_chain_of_forty_restores_at_many_lengths(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    """Longer than any that the daemon makes; its pages are all over it, and it is cut and grows."""
    server = postgres_factory(pg_installation.major, settings=SUMMARIES)
    server.execute("CREATE TABLE rows (id int PRIMARY KEY, text text)")
    server.execute("INSERT INTO rows SELECT g, repeat(md5(g::text), 9) FROM generate_series(1, 8000) g")
    server.execute("VACUUM (FREEZE, ANALYZE) rows")
    chain = chain_of(server, postgres_house, server_tmp_path)
    assert chain.back_up().type == "full"
    for number in range(1, 41):
        server.execute(
            "UPDATE rows SET text = %s WHERE id %% 40 = %s AND id %% 7 = 0", str(number), number % 40
        )
        server.execute("INSERT INTO rows SELECT 10000 * %s + g, 'new' FROM generate_series(1, 50) g", number)
        if number % 10 == 5:
            server.execute("DELETE FROM rows WHERE id > 10000 * %s", number - 3)
            server.execute("VACUUM (TRUNCATE true) rows")
        assert chain.back_up().type == "incr", notes_of(chain)
    for number in (1, 2, 4, 8, 15, 16, 25, 30, 40):
        moment = chain.moments[number]
        target = server_tmp_path / f"restored-{number}"
        plan = chain.restores.plan(chain.target(moment), backup=moment.backup.backup)
        assert len(plan.parents) == number
        chain.restores.restore(chain.restores.request(plan, target, server, verify_files=True))
        assert judge.examine(server, target) == moment.tables, number
        shutil.rmtree(target)
