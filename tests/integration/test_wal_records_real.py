"""The walk and the scan on WAL of real servers: pg_waldump is the judge."""

from __future__ import annotations

import os
import random
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from fix_postgres import PostgresFactory, RunningPostgres

from pitr.postgres.installation import Installation
from pitr.wal.lsn import LSN
from pitr.wal.pages import WalGeometry
from pitr.wal.records import WalRecord, iter_records
from pitr.wal.scanner import TransactionScanner
from pitr.wal.transactions import iter_restore_points, iter_transaction_ends, transaction_ends

SEGMENT_BYTES = 1 << 20
_RECORD = re.compile(
    r"rmgr: (\S+) +len \(rec/tot\): +\d+/ *(\d+), tx: +(\d+), lsn: (\S+), prev \S+ "
    r"desc: (\S+) ?(?:(\d+): )?(.*)"
)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}) UTC")
WORK = (
    "CREATE TABLE work (id int, text text)",
    "SELECT pg_create_restore_point('before the work')",
    "INSERT INTO work SELECT g, md5(g::text) FROM generate_series(1, 3000) g",
    "BEGIN; INSERT INTO work VALUES (1, 'p'); PREPARE TRANSACTION 'kept'",
    "BEGIN; INSERT INTO work VALUES (1, 'p'); CREATE TABLE gone (i int); PREPARE TRANSACTION 'dropped'",
    "COMMIT PREPARED 'kept'",
    "ROLLBACK PREPARED 'dropped'",
    "BEGIN; INSERT INTO work VALUES (2, 'a'); SAVEPOINT s; INSERT INTO work VALUES (3, 'b')",
    "ROLLBACK TO s; SAVEPOINT t; INSERT INTO work VALUES (4, 'c'); COMMIT",
    "BEGIN; INSERT INTO work VALUES (5, 'd'); ROLLBACK",
    # A commit record of many subtransactions crosses pages.
    """DO $$ BEGIN FOR i IN 1..4000 LOOP BEGIN
        PERFORM pg_current_xact_id(); EXCEPTION WHEN others THEN NULL; END; END LOOP; END $$""",
    "SELECT pg_logical_emit_message(false, 'm', repeat('y', 2500000)) IS NULL",
    "SELECT pg_switch_wal()",
    "CREATE TABLE copy AS SELECT * FROM work",
    "DROP TABLE copy",
    "SELECT pg_create_restore_point('after the work')",
    "VACUUM work",
)


@dataclass(frozen=True)
class RealWal:
    """One stretch of a server's WAL, and what pg_waldump says of it."""

    start: LSN
    content: bytes
    waldump: list[str]

    def chunks(self, seed: int) -> list[tuple[LSN, bytes]]:
        """The same, cut at random places."""
        chance = random.Random(seed)
        cuts = sorted(chance.sample(range(1, len(self.content)), 400))
        edges = [0, *cuts, len(self.content)]
        return [(self.start + at, self.content[at:end]) for at, end in pairwise(edges)]


def make_wal(server: RunningPostgres) -> RealWal:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for text in WORK:
            for statement in [text] if text.startswith("DO") else text.split("; "):
                connection.execute(statement.encode())
        for number in range(300):
            connection.execute("INSERT INTO work VALUES (%s, 'one by one')", [number])
    end = LSN.parse(str(server.value("SELECT pg_current_wal_flush_lsn()")))
    names = sorted(path for path in (server.data_dir / "pg_wal").iterdir() if len(path.name) == 24)
    files = [path for path in names if _start(path) < end.offset]
    content = b"".join(path.read_bytes() for path in files)[: end.offset - _start(files[0])]
    start = LSN(_start(files[0]))
    return RealWal(start, content, _waldump(server.instance.installation, files, end))


def _start(path: Path) -> int:
    per_high = (1 << 32) // SEGMENT_BYTES
    return (int(path.name[8:16], 16) * per_high + int(path.name[16:], 16)) * SEGMENT_BYTES


def _waldump(installation: Installation, files: list[Path], end: LSN) -> list[str]:
    first = iter_records([(LSN(_start(files[0])), files[0].read_bytes())], segment_bytes=SEGMENT_BYTES)
    result = subprocess.run(
        [
            installation.tool("pg_waldump"),
            "-s",
            str(next(first).start),
            "-e",
            str(end),
            "-p",
            files[0].parent,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "TZ": "UTC"},
    )
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def real_wal(module_major: int, module_postgres_factory: PostgresFactory) -> RealWal:
    settings = {"max_prepared_transactions": "5", "wal_keep_size": "1GB"}
    server = module_postgres_factory(module_major, settings=settings, initdb=["--wal-segsize=1"])
    found = make_wal(server)
    server.stop()
    return found


@pytest.mark.few_seeds(3)
def test_walk_and_scan_agree_with_pg_waldump(real_wal: RealWal, seed: int) -> None:
    chunks = real_wal.chunks(seed)
    records = list(iter_records(chunks, segment_bytes=SEGMENT_BYTES))
    lines = [match for line in real_wal.waldump if (match := _RECORD.match(line))]
    assert len(lines) == len(real_wal.waldump)
    assert [(str(r.start), r.xid, len(r.data) + 24) for r in records] == [
        (str(LSN.parse(line[4])), int(line[3]), int(line[2])) for line in lines
    ]
    _check_ends(real_wal, chunks, lines)
    _check_scan(records, chunks)


def _check_ends(real_wal: RealWal, chunks: list[tuple[LSN, bytes]], lines: list[re.Match[str]]) -> None:
    expected = []
    for line in lines:
        if line[1] == "Transaction" and line[5].startswith(("COMMIT", "ABORT")):
            time = _TIME.search(line[7])
            assert time is not None
            at = datetime.fromisoformat(f"{time[1]}+00:00")
            expected.append((LSN.parse(line[4]), int(line[6] or line[3]), line[5], at))
    found = [
        (end.start, end.xid, f"{end.kind.upper()}{'_PREPARED' if end.is_prepared else ''}", end.at)
        for end in iter_transaction_ends(chunks, segment_bytes=SEGMENT_BYTES)
    ]
    assert found == expected
    assert {kind for _, _, kind, _ in found} == {"COMMIT", "ABORT", "COMMIT_PREPARED", "ABORT_PREPARED"}
    points = [point.name for point in iter_restore_points(chunks, segment_bytes=SEGMENT_BYTES)]
    assert points == ["before the work", "after the work"]


def _check_scan(records: list[WalRecord], chunks: list[tuple[LSN, bytes]]) -> None:
    geometry = WalGeometry(SEGMENT_BYTES)
    ends = []
    for record in records:
        for end in transaction_ends([record]):
            last = geometry.position_of(record.start.offset) + 24 + len(record.data)
            ends.append((geometry.end_at(last), end.at))
    scanner = TransactionScanner(SEGMENT_BYTES)
    for start, content in chunks:
        result = scanner.feed(start, content)
        stretch = (start.offset, start.offset + len(content))
        times = [at for last, at in ends if stretch[0] < last <= stretch[1]]
        assert (result.min_at, result.max_at) == ((min(times), max(times)) if times else (None, None))
        assert result.is_exact or start < records[0].start
