"""The archiver as a process, killed under load; and the commits that wait for it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_stores import FaultyStore
from fix_wal_archive import SLOT, Load, WalHouse, archiving, flush_lsn, system_identifier, wait_until
from wal_archiver_process import QUORUM, regions

from pitr.wal.lsn import LSN
from pitr.wal.transactions import iter_transaction_ends
from storage.memory import MemoryStore
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore

CHILD = Path(__file__).parents[1] / "wal_archiver_process.py"
KEEP_WAL = {"wal_keep_size": "1GB"}


@contextmanager
def archiver_process(server: RunningPostgres, root: Path) -> Iterator[subprocess.Popen[str]]:
    root_of_checkout = str(CHILD.parents[1])
    process = subprocess.Popen(
        [sys.executable, CHILD, server.dsn, root, str(system_identifier(server))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root_of_checkout},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def reader(root: Path, server_identifier: int) -> Iterator[WalHouse]:
    """What is at quorum now, read as another machine would."""
    with closing(RepairQueue(root / "reader.db")) as queue:
        store = ReplicatedStore(regions(root), quorum=QUORUM, queue=queue)
        try:
            yield WalHouse(store, server_identifier)
        finally:
            store.close(10.0)


def acknowledged(server: RunningPostgres) -> LSN | None:
    value = server.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = %s", SLOT)
    return None if value is None else LSN.parse(str(value))


def wait_acknowledged(server: RunningPostgres, lsn: LSN) -> None:
    wait_until(
        lambda: server.value(
            "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= %s::pg_lsn", str(lsn)
        ),
        f"{lsn} to be acknowledged",
    )


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with-its-server"])
def test_what_was_acknowledged_before_a_kill_is_in_the_archive(
    postgres_factory: PostgresFactory, tmp_path: Path, with_server: bool
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    identifier = system_identifier(server)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(3):
        with archiver_process(server, tmp_path) as process, Load(server, row_bytes=2000) as load:
            wait_acknowledged(server, flush_lsn(server))
            load.wait_commits(100)
            time.sleep(chance.random() * 0.3)
            told = acknowledged(server)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            if with_server:
                server.kill()
                server.start(KEEP_WAL)
            with reader(tmp_path, identifier) as house:
                assert told is not None
                assert house.wal(1).end >= told
    with archiver_process(server, tmp_path) as process:
        end = flush_lsn(server)
        wait_acknowledged(server, end)
        process.terminate()
        assert process.stdout is not None
        assert "all WAL received is durable" in process.stdout.readline()
        assert process.wait(60) == 0
    with reader(tmp_path, identifier) as house:
        wal = house.wal(1)
        assert wal.end >= end
        assert wal.assert_equals_server(server.data_dir) > 0
        head = house.repository.latest_head(house.archive)
        assert head is not None
        assert (head.wal_start, head.wal_end) == (wal.start, wal.end)


def test_synchronous_commits_return_when_they_are_at_quorum_and_not_before(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, {**KEEP_WAL, "synchronous_standby_names": "pitr"})
    store = FaultyStore(MemoryStore())
    house = WalHouse(store, system_identifier(server))

    def commit() -> int:
        return int(str(server.value("INSERT INTO t VALUES (1) RETURNING pg_current_xact_id()")))

    def archived() -> set[int]:
        wal = house.wal(1)
        ends = iter_transaction_ends([(wal.start, wal.content())], segment_bytes=16 << 20)
        return {end.xid for end in ends}

    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        server.execute("CREATE TABLE t (i int)")
        for _ in range(3):
            assert commit() in archived()
        gate = store.hold("put")
        with ThreadPoolExecutor(1) as sessions:
            waiting = sessions.submit(commit)
            wait_until(
                lambda: server.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"),
                "a commit that waits",
            )
            gate.entered.wait(60)
            assert not waiting.done()
            store.heal()
            assert waiting.result(60) in archived()
