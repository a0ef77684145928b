"""Restores over an old directory from every kind of backup: long chains, consolidated, over the protocol."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_increment import SUMMARIES, Chain, Moment
from fix_postgres import SUMMARIES_SINCE, PostgresFactory, PostgresHouse, RunningPostgres, table_digests
from fix_restore import Judge
from fix_resume import Interruptions

from pitr.backup_remote import RemoteRequest, take_remote_backup
from pitr.backup_request import BackupWriter
from pitr.catalogue.backup_record import BackupManifest
from pitr.consolidate import ConsolidateRequest, consolidate
from pitr.datakeys import DataKeys
from pitr.postgres.installation import Installation
from pitr.postgres.server_user import hand_over
from pitr.restore_request import RestoreResult
from pitr.wal.lsn import LSN

pytestmark = pytest.mark.mostly_17

NOISE = """
    CREATE TABLE {} AS SELECT g AS n, (SELECT string_agg(sha512((g * 10 + i)::text::bytea), '')
    FROM generate_series(1, 8) i) AS bytes FROM generate_series(1, 15000) g
"""


@pytest.fixture
def noisy(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
) -> tuple[RunningPostgres, Path]:
    """A server with a table of noise, and another one in a tablespace."""
    server = postgres_factory(pg_installation.major, settings=SUMMARIES, name="chains")
    space = server_tmp_path / "space"
    space.mkdir()
    hand_over(space, postgres_house.user)
    server.execute(f"CREATE TABLESPACE fast LOCATION '{space}'")
    server.execute(NOISE.format("noise"))
    server.execute(NOISE.format("spaced"))
    server.execute("ALTER TABLE spaced SET TABLESPACE fast")
    server.execute("VACUUM (FREEZE, ANALYZE)")
    return server, space


@pytest.fixture
def chain(
    noisy: tuple[RunningPostgres, Path], postgres_house: PostgresHouse, server_tmp_path: Path
) -> tuple[Chain, Path]:
    """Its archive, and no backup yet."""
    server, space = noisy
    return Chain.below(server_tmp_path, server, postgres_house.user), space


def back_up_from_afar(chain: Chain, parent: BackupManifest | None) -> BackupManifest:
    house, server = chain.house, chain.server
    manifest = take_remote_backup(
        RemoteRequest(
            dsn=server.dsn,
            archive=house.archive,
            label="from afar",
            notes_dir=chain.notes_dir,
            parent=parent,
        ),
        BackupWriter(house.repository, house.signer, [house.identity.recipient()]),
        chain.archiver.gate,
        clock=lambda: datetime.now(UTC),
        random=os.urandom,
        progress=house.progress.append,
    )
    server.switch_wal()
    tables = table_digests(server.dsn)
    at = LSN.parse(str(server.value("SELECT pg_current_wal_insert_lsn()")))
    server.execute("CHECKPOINT")
    chain.archiver.ship()
    chain.moments.append(Moment(manifest, at, tables))
    return manifest


def make_full(chain: Chain, scratch: Path, line: list[BackupManifest]) -> BackupManifest:
    restores = chain.restores
    scratch.mkdir()
    return consolidate(
        ConsolidateRequest(line, scratch),
        restores.repository,
        DataKeys(restores.repository, restores.identity),
        restores.identity.root_signer(),
        [restores.identity.recipient()],
        clock=lambda: datetime.now(UTC),
        random=os.urandom,
    ).manifest


def leave(server: RunningPostgres, space: Path, folder: Path) -> tuple[Path, Path]:
    """Return a copy of the stopped cluster and of its tablespace, in which some bits have flipped."""
    data, fast = folder / "data", folder / "fast"
    for origin, to in ((server.data_dir, data), (space, fast)):
        subprocess.run(["cp", "-a", str(origin), str(to)], check=True)
    for link in (data / "pg_tblspc").iterdir():
        link.unlink()
        link.symlink_to(fast)
    for top in (data / "base", fast):
        largest = max(top.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        times = largest.stat()
        with largest.open("r+b") as file:
            file.seek(3_333_333)
            byte = file.read(1)
            file.seek(3_333_333)
            file.write(bytes([byte[0] ^ 4]))
        os.utime(largest, ns=(times.st_atime_ns, times.st_mtime_ns))
    return data, fast


def restore_over(
    chain: Chain, space: Path, moment: Moment, folder: Path, parents: list[str]
) -> RestoreResult:
    folder.mkdir()
    hand_over(folder, chain.user)
    data, fast = leave(chain.server, space, folder)
    plan = chain.restores.plan(chain.target(moment), backup=moment.backup.backup)
    assert [one.backup for one in plan.parents] == parents
    return chain.restores.restore(
        chain.restores.request(
            plan,
            data,
            chain.server,
            is_delta=True,
            verify_files=True,
            tablespace_mapping={"fast": fast},
        )
    )


def change(chain: Chain, number: int) -> None:
    for table in ("noise", "spaced"):
        chain.server.execute(f"UPDATE {table} SET bytes = 'round {number}' WHERE n = {number * 1000}")


def test_a_long_chain_and_one_that_goes_on_over_a_consolidated_full_are_restored_over_what_came_of_them(
    chain: tuple[Chain, Path], server_tmp_path: Path, judge: Judge
) -> None:
    made, space = chain
    made.back_up()
    for number in range(1, 4):
        change(made, number)
        assert made.back_up().type == "incr"
    middle = made.moments[2]
    full = make_full(made, server_tmp_path / "scratch", [one.backup for one in made.moments[2::-1]])
    change(made, 4)
    assert made.back_up().type == "incr"
    made.server.stop()
    last, third = made.moments[-1], made.moments[3].backup.backup
    result = restore_over(made, space, last, server_tmp_path / "over", [third, full.backup])
    assert result.kept_bytes > result.size_bytes * 0.5
    assert judge.examine(made.server, server_tmp_path / "over" / "data") == last.tables
    # The chain itself, without what stands for it.
    for stored in (*full.packs, *full.indexes):
        made.store.delete(stored.key)
    made.store.delete(f"manifests/{full.archive}/{full.backup}")
    line = [one.backup.backup for one in made.moments[3::-1]]
    result = restore_over(made, space, last, server_tmp_path / "again", line)
    assert result.kept_bytes > result.size_bytes * 0.3
    assert judge.examine(made.server, server_tmp_path / "again" / "data") == last.tables
    assert middle.backup.backup in line


def test_a_chain_that_was_taken_over_the_protocol_is_restored_over_what_came_of_it(
    chain: tuple[Chain, Path], server_tmp_path: Path, judge: Judge
) -> None:
    made, space = chain
    full = back_up_from_afar(made, None)
    change(made, 1)
    is_incremental = made.server.instance.installation.major >= SUMMARIES_SINCE
    assert back_up_from_afar(made, full).type == ("incr" if is_incremental else "full")
    made.server.stop()
    for number, parents in ((0, []), (1, [full.backup] if is_incremental else [])):
        moment = made.moments[number]
        result = restore_over(made, space, moment, server_tmp_path / f"over{number}", parents)
        assert result.kept_bytes > result.size_bytes * 0.5
        assert judge.examine(made.server, result.target) == moment.tables


def test_backups_that_went_on_where_others_were_killed_are_restored_over_what_came_of_them(
    noisy: tuple[RunningPostgres, Path], postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> None:
    server, space = noisy
    it = Interruptions(server, postgres_house, server_tmp_path, judge)
    # All packs of the first are there: what is kept of the cluster is kept by packs under another key.
    it.interrupt(10_000)
    server.execute("UPDATE spaced SET bytes = 'in between' WHERE n = 500")
    server.execute("CHECKPOINT")
    full = it.back_up()
    server.execute("UPDATE noise SET bytes = sha512(bytes) || bytes WHERE n > 12000")
    server.execute("CHECKPOINT")
    it.interrupt(3, parent=full.backup)
    server.execute("UPDATE noise SET bytes = 'after the kill' WHERE n = 14000")
    incr = it.back_up()
    server.stop()
    for manifest in (full, incr):
        sealed = dict.fromkeys(manifest.key_ids, 0)
        for pack in manifest.packs:
            sealed[pack.key_id or manifest.key_id] += pack.size_bytes
        assert len(sealed) == 2
        assert min(sealed.values()) > 0
    own = sum(pack.size_bytes for pack in full.packs if pack.key_id is None)
    for number, (moment, parents) in enumerate(
        zip(it.chain.moments, ([], [full.backup]), strict=True),
    ):
        result = restore_over(it.chain, space, moment, server_tmp_path / f"over{number}", parents)
        assert result.kept_bytes > result.size_bytes * 0.4
        assert result.fetched_bytes < own + sum(pack.size_bytes for pack in incr.packs) + 2 * 1024 * 1024
        assert judge.examine(server, result.target) == moment.tables
