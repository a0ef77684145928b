"""Base backups of real servers under load: what is restored from them is what was there."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from fix_backup import BackupHouse, fill, house_for, in_thread, threads_left
from fix_increment import Chain
from fix_ports import free_port
from fix_postgres import PostgresFactory, RunningPostgres, server_settings, table_digests
from fix_restore import AMCHECK, has_amcheck
from fix_stores import FaultyStore

from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import BackupFailed, ServerRefused
from pitr.layout import ArchiveId
from pitr.pipeline.packs import IndexFile, IndexFileMore
from pitr.postgres.installation import Installation
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import ServerUser, as_user, hand_over
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import StoreRefused, StoreUnavailable

TOOL_TIMEOUT_S = 120


@contextmanager
def load_on(dsn: str) -> Iterator[None]:
    """Update, insert, create and drop on one connection until the block ends."""
    stop, failures = threading.Event(), []

    def work() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                turn = 0
                while not stop.is_set():
                    turn += 1
                    connection.execute(
                        "UPDATE notes SET text = md5(text) || text WHERE id %% 997 = %s", [turn % 997]
                    )
                    connection.execute("CREATE TABLE IF NOT EXISTS grown (n int, filler text)")
                    connection.execute(
                        "INSERT INTO grown SELECT g, repeat('x', 500) FROM generate_series(1, 300) g"
                    )
                    if turn % 5 == 0:
                        connection.execute("CREATE TABLE passing AS SELECT * FROM notes LIMIT 2000")
                        connection.execute("DROP TABLE passing")
        except psycopg.Error as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures


def run_tool(installation: Installation, user: ServerUser | None, tool: str, *arguments: str) -> None:
    prefix, options = as_user(user)
    done = subprocess.run(
        [*prefix, str(installation.tool(tool)), *arguments],
        capture_output=True,
        timeout=TOOL_TIMEOUT_S,
        text=True,
        check=False,
        cwd="/",
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def restored(
    house: BackupHouse,
    manifest: BackupManifest,
    source: RunningPostgres,
    folder: Path,
    user: ServerUser | None,
    tablespaces: dict[int, Path] | None = None,
) -> Iterator[Instance]:
    """Restore a backup, let pg_verifybackup judge it, recover to the end of the source's WAL."""
    target = folder / "restored"
    house.restore(manifest, target, tablespaces)
    for path in (target, *(tablespaces or {}).values()):
        hand_over(path, user)
    installation = source.instance.installation
    # The WAL from start to stop, which the archive would give, from the source itself.
    source.switch_wal()
    for segment in sorted((source.data_dir / "pg_wal").glob("0*")):
        shutil.copy(segment, target / "pg_wal" / segment.name)
    hand_over(target / "pg_wal", user)
    for segment in (target / "pg_wal").iterdir():
        hand_over(segment, user)
    run_tool(installation, user, "pg_verifybackup", str(target))
    instance = Instance(
        installation, target, user=user, socket_dir=folder / "s", port=free_port(), log_path=folder / "log"
    )
    instance.start({**server_settings(installation), "listen_addresses": "", "archive_mode": "off"})
    try:
        yield instance
    finally:
        instance.kill()


def check_clean(instance: Instance, user: ServerUser | None) -> None:
    where = ["-h", str(instance.socket_dir), "-p", str(instance.port), "-U", "postgres"]
    if has_amcheck(instance):
        run_tool(instance.installation, user, "pg_amcheck", *AMCHECK, *where)
    instance.stop()
    run_tool(instance.installation, user, "pg_checksums", "--check", "-D", str(instance.data_dir))


def test_a_backup_under_load_restores_to_what_was_there(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    server_tmp_path: Path,
    server_user_or_none: ServerUser | None,
) -> None:
    source = postgres_factory(installation=pg_installation)
    fill(source)
    source.execute("CREATE UNLOGGED TABLE scratch AS SELECT generate_series(1, 1000) AS n")
    source.execute("CREATE DATABASE other STRATEGY file_copy")
    source.execute("CREATE TABLE there AS SELECT generate_series(1, 5000) AS n", dbname="other")
    source.checkpoint()
    house = house_for(source)
    with load_on(source.dsn):
        manifest = house.back_up(source.dsn)
    assert manifest.findings == ()
    assert manifest.page_checksums
    assert house.listed() == [f"manifests/{house.archive}/{manifest.backup}"]
    assert house.progress[-1].phase == "done"
    digests = table_digests(source.dsn, ("postgres", "other"))
    with restored(house, manifest, source, server_tmp_path, server_user_or_none) as instance:
        found = table_digests(instance.dsn, ("postgres", "other"))
        assert digests.pop("postgres.public.scratch").startswith("1000:")
        assert found.pop("postgres.public.scratch") == "0:0"
        assert found == digests
        check_clean(instance, server_user_or_none)


def test_the_manifest_says_what_was_copied(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    fill(source, 1000)
    house = house_for(source)
    manifest = house.back_up(source.dsn, workers=3)
    files = [line for line in house.all_lines(manifest) if isinstance(line, IndexFile)]
    assert manifest.files == len(files)
    assert manifest.size_bytes == sum(file.size_bytes for file in files)
    assert [line.path for line in house.lines(manifest, 0) if isinstance(line, IndexFile)] == [
        b"global/pg_control"
    ]
    assert dict(manifest.settings)["max_connections"] == "100"
    assert manifest.start_lsn < manifest.stop_lsn
    assert len({file.path for file in files}) == len(files)


def test_the_control_file_is_read_last(
    postgres_factory: PostgresFactory,
    server_tmp_path: Path,
    server_user_or_none: ServerUser | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it says of a standby's recovery must not be from before any other file (do_pg_backup_stop)."""
    source = postgres_factory(settings={"wal_keep_size": "1GB"})
    fill(source, 1000)
    opened: list[str] = []
    open_file = os.open

    def note(path: bytes | str, *options: int, **named: int) -> int:
        opened.append(os.fsdecode(path))
        return open_file(path, *options, **named)

    monkeypatch.setattr(os, "open", note)
    chain = Chain.below(server_tmp_path, source, server_user_or_none)
    for kind in ("full", "incr"):
        opened.clear()
        assert chain.back_up().type == kind
        read = [path for path in opened if path.startswith(f"{source.data_dir}/")]
        assert read[-1] == f"{source.data_dir}/global/pg_control"
        assert str(relation_path(source, "notes")) in read[:-1]


def test_tablespaces_come_back(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    server_tmp_path: Path,
    server_user_or_none: ServerUser | None,
) -> None:
    source = postgres_factory(installation=pg_installation)
    original, moved = server_tmp_path / "space", server_tmp_path / "moved"
    for path in (original, moved):
        path.mkdir(mode=0o700)
        hand_over(path, server_user_or_none)
    source.execute(f"CREATE TABLESPACE fast LOCATION '{original}'")
    source.execute(
        "CREATE TABLE placed TABLESPACE fast AS SELECT g, md5(g::text) FROM generate_series(1, 9000) g"
    )
    house = house_for(source)
    manifest = house.back_up(source.dsn)
    ((space,),) = (manifest.tablespaces,)
    assert (space.name, space.location) == ("fast", str(original))
    assert str(original).encode() in manifest.tablespace_map
    digests = table_digests(source.dsn)
    with restored(
        house, manifest, source, server_tmp_path, server_user_or_none, {space.oid: moved}
    ) as instance:
        assert table_digests(instance.dsn) == digests
        assert list(moved.glob("PG_*/*/*"))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))
        os.fsync(file.fileno())


def relation_path(server: RunningPostgres, name: str) -> Path:
    return server.data_dir / str(server.value("SELECT pg_relation_filepath(%s::regclass)", name))


@pytest.mark.parametrize("use_direct_io", [True, False])
def test_a_flipped_page_is_found_by_relation_fork_and_block(
    postgres_factory: PostgresFactory, use_direct_io: bool
) -> None:
    source = postgres_factory()
    fill(source)
    source.execute("VACUUM notes")
    source.execute('CREATE TABLE public."Small one" AS SELECT 1 AS n')
    path, small = relation_path(source, "notes"), relation_path(source, '"Small one"')
    source.stop()
    flip(path, 700 * 8192 + 4000)
    flip(small, 5000)
    flip(Path(f"{path}_vm"), 300)
    source.start()
    house = house_for(source)
    manifest = house.back_up(source.dsn, use_direct_io=use_direct_io)
    found = [(each.relation, each.fork, each.block) for each in manifest.findings]
    assert sorted(found, key=str) == [
        ('postgres.public."Small one"', "main", 0),
        ("postgres.public.notes", "main", 700),
        ("postgres.public.notes", "vm", 0),
    ]
    assert all("calculated" in each.reason for each in manifest.findings)
    assert house.repository.get_manifest(house.archive, manifest.backup).manifest == manifest
    stored = {line.path: line for line in house.all_lines(manifest) if isinstance(line, IndexFile)}
    assert stored[os.fsencode(path.relative_to(source.data_dir))].size_bytes == path.stat().st_size


def test_without_checksums_headers_are_judged_and_the_manifest_says_so(
    postgres_factory: PostgresFactory,
) -> None:
    checksums_off = postgres_factory()
    fill(checksums_off, 20_000)
    path = relation_path(checksums_off, "notes")
    checksums_off.stop()
    run_tool(
        checksums_off.instance.installation,
        checksums_off.instance.user,
        "pg_checksums",
        "--disable",
        "-D",
        str(checksums_off.data_dir),
    )
    flip(path, 10 * 8192 + 4000)  # a row: unseen without checksums
    flip(path, 20 * 8192 + 17)  # pd_special: the header
    checksums_off.start()
    manifest = house_for(checksums_off).back_up(checksums_off.dsn)
    assert not manifest.page_checksums
    assert [(each.block, each.reason) for each in manifest.findings] == [(20, "the page header is not valid")]


def test_a_lost_session_fails_the_backup_and_nothing_is_listed(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    fill(source)
    store = FaultyStore(MemoryStore())
    house = house_for(source, store)
    gate = store.hold("put")
    outcome = in_thread(lambda: house.back_up(source.dsn))
    # The lease, the envelope, and then one that finds the backup begun.
    for _ in range(2):
        assert gate.entered.wait(30)
        later = store.hold_next("put")
        gate.release()
        gate = later
    assert gate.entered.wait(30)
    source.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pitr'")
    store.heal()
    assert isinstance(outcome(), BackupFailed)
    assert house.listed() == []


def test_a_cancelled_backup_ends_at_once_and_nothing_is_listed(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    fill(source)
    store, cancel = FaultyStore(MemoryStore()), threading.Event()
    house = house_for(source, store)
    gate = store.hold("put")
    outcome = in_thread(lambda: house.back_up(source.dsn, cancel=cancel))
    gate.entered.wait(30)
    cancel.set()
    store.heal()
    failure = outcome()
    assert isinstance(failure, BackupFailed)
    assert "cancelled" in failure.message
    assert house.listed() == []
    assert threads_left() == []
    assert source.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pitr'") == 0


def test_a_store_that_fails_for_a_while_delays_the_backup(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    fill(source, 1000)
    store = FaultyStore(MemoryStore())
    house = house_for(source, store)
    calls = len(store.calls)
    gate = store.hold("put")
    outcome = in_thread(lambda: house.back_up(source.dsn))
    gate.entered.wait(30)  # the lease
    store.heal()
    # Of the objects that follow, the first two are refused service once each.
    store.fail(StoreUnavailable("busy"), "put", times=2)
    manifest = outcome()
    assert isinstance(manifest, BackupManifest)
    assert len(store.calls) > calls
    house.all_lines(manifest)


def test_one_region_that_is_down_does_not_hold_a_backup_up(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    source = postgres_factory()
    fill(source)
    stores = [FaultyStore(MemoryStore()) for _ in range(3)]
    regions = [Region(f"r{number}", store) for number, store in enumerate(stores)]
    with (
        closing(RepairQueue(tmp_path / "queue")) as repairs,
        closing(ReplicatedStore(regions, quorum=2, queue=repairs)) as store,
    ):
        house = house_for(source, store)
        stores[2].go_down()
        manifest = house.back_up(source.dsn)
        assert manifest.findings == ()
    for whole in stores[:2]:
        keys = {info.key for info in whole.inner.list_objects("")}
        assert {stored.key for stored in (*manifest.packs, *manifest.indexes)} <= keys
        assert f"manifests/{house.archive}/{manifest.backup}" in keys


def test_a_store_that_refuses_fails_the_backup_and_nothing_is_listed(
    postgres_factory: PostgresFactory,
) -> None:
    source = postgres_factory()
    fill(source)
    store = FaultyStore(MemoryStore())
    house = house_for(source, store)
    gate = store.hold("put")
    outcome = in_thread(lambda: house.back_up(source.dsn))
    gate.entered.wait(30)
    store.heal()
    store.fail(StoreRefused("access denied"), "put")
    failure = outcome()
    store.heal()
    assert isinstance(failure, BackupFailed)
    assert "access denied" in failure.message
    assert failure.hint is not None
    assert house.listed() == []
    assert threads_left() == []


def test_a_backup_whose_wal_does_not_arrive_is_not_listed(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    house = house_for(source)
    asked: list[tuple[TimelineId, LSN, LSN]] = []

    def never(timeline: TimelineId, start: LSN, end: LSN, timeout_s: float) -> bool:
        asked.append((timeline, start, end))
        return False

    with pytest.raises(BackupFailed, match="WAL") as failure:
        house.back_up(source.dsn, wait_for_wal=never, wal_timeout_s=0.0)
    assert failure.value.hint is not None
    assert house.listed() == []
    ((timeline, start, end),) = set(asked)
    assert timeline == TimelineId(1)
    assert start < end


def test_another_clusters_archive_is_refused(postgres_factory: PostgresFactory, tmp_path: Path) -> None:
    source = postgres_factory()
    with pytest.raises(ServerRefused, match="another cluster"):
        BackupHouse(MemoryStore(), ArchiveId(12345, 1)).back_up(source.dsn)


def test_a_data_directory_of_another_cluster_is_refused(postgres_factory: PostgresFactory) -> None:
    source, other = postgres_factory(), postgres_factory(name="other")
    house = house_for(source)
    with pytest.raises(ServerRefused, match="belongs to another cluster"):
        house.back_up(source.dsn, data_dir=other.data_dir)
    assert house.listed() == []


def test_a_sparse_file_costs_nothing_and_comes_back(
    postgres_factory: PostgresFactory, server_tmp_path: Path
) -> None:
    source = postgres_factory()
    hole = source.data_dir / "alien \udcff.bin"
    with hole.open("wb") as file:
        file.truncate(40 << 20)
        file.seek(20 << 20)
        file.write(b"here")
    house = house_for(source)
    manifest = house.back_up(source.dsn)
    lines = [
        line
        for line in house.all_lines(manifest)
        if isinstance(line, IndexFile | IndexFileMore) and line.path == b"alien \xff.bin"
    ]
    assert sum(len(line.extents) for line in lines) == 1
    house.restore(manifest, server_tmp_path / "restored")
    assert (server_tmp_path / "restored" / hole.name).read_bytes() == hole.read_bytes()


@pytest.mark.slow
def test_a_relation_of_more_than_one_segment_is_judged_and_restored_in_all_of_them(
    postgres_factory: PostgresFactory,
    server_tmp_path: Path,
    server_user_or_none: ServerUser | None,
) -> None:
    source = postgres_factory(settings={"max_wal_size": "4GB"})
    source.execute("CREATE TABLE big (n int, filler text STORAGE plain)")
    source.execute("INSERT INTO big SELECT g, repeat(md5(g::text), 60) FROM generate_series(1, 560000) g")
    source.checkpoint()
    path = relation_path(source, "big")
    second = Path(f"{path}.1")
    assert path.stat().st_size == 1 << 30
    house = house_for(source)
    manifest = house.back_up(source.dsn)
    assert manifest.findings == ()
    digests = table_digests(source.dsn)
    with restored(house, manifest, source, server_tmp_path, server_user_or_none) as instance:
        assert table_digests(instance.dsn) == digests
    source.stop()
    flip(second, 11 * 8192 + 4000)
    source.start()
    (found,) = house.back_up(source.dsn).findings
    assert (found.relation, found.block) == ("postgres.public.big", 131072 + 11)
    assert found.path == str(second.relative_to(source.data_dir))
