"""What a base backup holds of a cluster, beside what PostgreSQL's own base backup holds of the same one."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from fix_increment import SUMMARIES, Chain
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres

from pitr.backup_remote import RemoteRequest, take_remote_backup
from pitr.backup_request import BackupWriter
from pitr.catalogue.backup_record import BackupManifest
from pitr.postgres.installation import Installation
from pitr.postgres.server_user import ServerUser, as_user, hand_over
from pitr.recovery import RecoveryTarget
from storage.local import DirectoryStore

SETTINGS = {
    **SUMMARIES,
    "logging_collector": "on",
    "max_prepared_transactions": "2",
    "dynamic_shared_memory_type": "mmap",
    "work_mem": "64kB",
    "temp_buffers": "800kB",
}
# What there must be of each on the server, or the test shows nothing; and nobody's backup has any of it.
LEFT_OUT = {
    "rows of unlogged tables": r"base/\d+/{unlogged}(_fsm|_vm)?",
    "rows of unlogged tables in a tablespace": r"pg_tblspc/\d+/PG_\w+/\d+/{spaced}",
    "temporary relations": r"base/\d+/t\d+_\d+(_fsm|_vm)?",
    "temporary relations in a tablespace": r"pg_tblspc/\d+/PG_\w+/\d+/t\d+_\d+",
    "temporary files": r"base/pgsql_tmp(/.*)?",
    "WAL": r"pg_wal/[0-9A-F]{{24}}",
    "replication slots": r"pg_replslot/.+",
    "notifications": r"pg_notify/.+",
    "exported snapshots": r"pg_snapshots/.+",
    "subtransactions": r"pg_subtrans/.+",
    "serializable transactions": r"pg_serial/.+",
    "shared memory": r"pg_dynshmem/.+",
    "passing statistics": r"pg_stat_tmp/.+",
    "caches of the catalogues": r"(base/\d+|global)/pg_internal\.init.*",
    "the postmaster's own": r"postmaster\.(pid|opts)",
    "half a configuration": r"postgresql\.auto\.conf\.tmp",
    "half a list of logs": r"current_logfiles\.tmp",
}
KEPT = {
    "the init fork of unlogged tables": r"base/\d+/{unlogged}_init",
    "the init fork in a tablespace": r"pg_tblspc/\d+/PG_\w+/\d+/{spaced}_init",
    "free space maps": r"base/\d+/{mapped}_fsm",
    "visibility maps": r"base/\d+/{mapped}_vm",
    "the list of logs": r"current_logfiles",
    "prepared transactions": r"pg_twophase/\w+",
    "what a stranger left": r"base/\d+/stranger",
}


def paths(root: Path) -> dict[str, str]:
    """Return what each path below ``root`` is; a tablespace's link is followed."""
    found: dict[str, str] = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        for name in [*folders, *names]:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            kind = "directory" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "file"
            found[str(path.relative_to(root))] = kind
    return found


@contextmanager
def busy_sessions(server: RunningPostgres) -> Iterator[None]:
    """Keep sessions open that have a temporary relation, temporary files and a snapshot."""
    with ExitStack() as sessions:

        def session() -> psycopg.Connection:
            return sessions.enter_context(psycopg.connect(server.dsn, autocommit=True))

        worker = session()
        for where in ("", "TABLESPACE fast"):
            name = f"mine_{where[-4:]}"
            worker.execute(f"CREATE TEMPORARY TABLE {name} (n int) {where}")
            worker.execute(f"INSERT INTO {name} SELECT generate_series(1, 100000)")
            worker.execute(f"VACUUM {name}")
        worker.execute("BEGIN")
        worker.execute(
            "DECLARE spilt CURSOR FOR SELECT md5(g::text) FROM generate_series(1, 200000) g ORDER BY 1"
        )
        worker.execute("FETCH 10 FROM spilt")
        exporter = session()
        exporter.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        exporter.execute("SELECT pg_export_snapshot()")
        yield


def fill(server: RunningPostgres, space: Path) -> None:
    server.execute(f"CREATE TABLESPACE fast LOCATION '{space}'")
    server.execute("CREATE UNLOGGED TABLE scratch AS SELECT g AS n FROM generate_series(1, 100000) g")
    server.execute("VACUUM scratch")
    server.execute(
        "CREATE UNLOGGED TABLE spaced TABLESPACE fast AS SELECT g AS n FROM generate_series(1, 9) g"
    )
    server.execute("CREATE TABLE mapped AS SELECT g AS n FROM generate_series(1, 100000) g")
    server.execute("VACUUM mapped")
    server.execute("CREATE TABLE prepared (n int)")
    server.execute("SELECT pg_create_physical_replication_slot('kept', true)")
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO prepared VALUES (1)")
        connection.execute("PREPARE TRANSACTION 'half'")
    server.checkpoint()


def leave_behind(server: RunningPostgres, user: ServerUser | None) -> None:
    """Put there what a server leaves only at moments that no test can wait for."""
    folder = Path(str(server.value("SELECT pg_relation_filepath('pg_class')"))).parent
    for name in (
        "pg_serial/0000",
        "pg_notify/0F00",
        "pg_stat_tmp/pgss_query_texts.stat",
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        f"{folder}/pg_internal.init.4711",
        # Before 17 pg_basebackup takes what follows a dot for the number of a segment, and fails.
        f"{folder}/stranger",
    ):
        path = server.data_dir / name
        path.write_bytes(b"left behind")
        hand_over(path, user)


def servers_own(server: RunningPostgres, folder: Path, user: ServerUser | None) -> Path:
    """Take PostgreSQL's own base backup."""
    folder.mkdir()
    hand_over(folder, user)
    prefix, options = as_user(user)
    tool = str(server.instance.installation.tool("pg_basebackup"))
    words = [*prefix, tool, "-h", str(server.instance.socket_dir), "-p", str(server.port), "-U", "postgres"]
    space = str(server.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'"))
    words += ["-D", str(folder / "data"), "-T", f"{space}={folder / 'space'}", "-X", "none", "-c", "fast"]
    subprocess.run(words, check=True, capture_output=True, timeout=120, cwd="/", **options)
    return folder / "data"


def over_the_protocol(chain: Chain) -> BackupManifest:
    house = chain.house
    return take_remote_backup(
        RemoteRequest(chain.server.dsn, house.archive, "from afar", chain.notes_dir),
        BackupWriter(house.repository, house.signer, [house.identity.recipient()]),
        chain.archiver.gate,
        clock=lambda: datetime.now(UTC),
        random=os.urandom,
    )


@pytest.mark.mostly_17
@pytest.mark.parametrize("source", ["files", "protocol"])
def test_a_restored_directory_holds_what_the_servers_own_base_backup_holds(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    source: str,
) -> None:
    server, user = postgres_factory(pg_installation.major, settings=SETTINGS), postgres_house.user
    space = server_tmp_path / "space"
    space.mkdir(mode=0o700)
    hand_over(space, user)
    fill(server, space)
    leave_behind(server, user)
    store = DirectoryStore.create(server_tmp_path / "store")
    chain = Chain(server, store, user, server_tmp_path / "notes")
    with busy_sessions(server):
        nodes = {
            name: Path(str(server.value(f"SELECT pg_relation_filepath('{table}')"))).name
            for name, table in (("unlogged", "scratch"), ("spaced", "spaced"), ("mapped", "mapped"))
        }
        manifest = chain.back_up() if source == "files" else over_the_protocol(chain)
        theirs = paths(servers_own(server, server_tmp_path / "own", user))
        there = paths(server.data_dir)
    chain.archiver.ship()
    plan = chain.restores.plan(RecoveryTarget("latest"), backup=manifest.backup)
    target = server_tmp_path / "restored"
    moved = {"fast": server_tmp_path / "moved"}
    chain.restores.restore(
        chain.restores.request(
            plan, target, server, action="none", tablespace_mapping=moved, verify_files=True
        )
    )
    ours = paths(target)
    # A restore brings these of its own: the map is only in a tar, and recovery begins with the signal.
    assert ours.pop("recovery.signal") == ours.pop("tablespace_map") == "file"
    assert ours == theirs
    for what, pattern in LEFT_OUT.items():
        form = re.compile(pattern.format(**nodes))
        assert [path for path in there if form.fullmatch(path)], f"{what}: the server has none"
        assert [path for path in ours if form.fullmatch(path)] == [], what
    for what, pattern in KEPT.items():
        form = re.compile(pattern.format(**nodes))
        assert [path for path in ours if form.fullmatch(path)], what
