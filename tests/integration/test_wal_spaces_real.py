"""Tablespaces in the WAL of each major's real server: inside a segment, and over the end of one."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from fix_postgres import PostgresFactory, PostgresHouse, majors

from pitr.postgres.server_user import hand_over
from pitr.wal.pages import PAGE_BYTES, WalGeometry
from pitr.wal.spaces import MadeTablespace, find_made, find_made_across, may_end_one

SEGMENT_BYTES = 16 * 1024 * 1024
GEOMETRY = WalGeometry(SEGMENT_BYTES)
TRIES = 12


def read_segments(folder: Path) -> dict[int, bytes]:
    """Return the segments that the server has written, by number."""
    files = [path for path in folder.iterdir() if len(path.name) == 24]
    return {int(path.name[8:16], 16) * 256 + int(path.name[16:], 16): path.read_bytes() for path in files}


def judge(segments: dict[int, bytes]) -> tuple[list[MadeTablespace], list[MadeTablespace]]:
    """Return what is found inside of segments, and what over their ends."""
    inside: list[MadeTablespace] = []
    across: list[MadeTablespace] = []
    for number in sorted(segments):
        content, start = segments[number], number * SEGMENT_BYTES
        inside += find_made(GEOMETRY, start, content)
        before = segments.get(number - 1)
        if before is not None and may_end_one(GEOMETRY, start, content[:PAGE_BYTES]):
            across += find_made_across(GEOMETRY, start, before[-PAGE_BYTES:], content[:PAGE_BYTES])
    return inside, across


@pytest.mark.parametrize("major", majors(), ids=lambda major: f"pg{major}")
def test_each_tablespace_that_a_server_makes_is_found_in_its_wal(
    major: int, postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    # What was removed is looked at as well: no segment may go, and none be used again.
    server = postgres_factory(major, settings={"wal_keep_size": "2GB", "wal_recycle": "off"})
    folder = server_tmp_path
    for part in ("x" * 250, "y" * 250, "z" * 250):
        folder /= part
        folder.mkdir(mode=0o755)
    folder /= "space"
    folder.mkdir()
    hand_over(folder, postgres_house.user)
    oids, before_bytes = [], 1000
    with psycopg.connect(server.dsn, autocommit=True) as session:

        def at() -> int:
            row = session.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
            assert row is not None
            return int(row[0])

        def write(size_bytes: int) -> None:
            text = "SELECT pg_logical_emit_message(false, 'm', repeat('y', %s)) IS NULL"
            session.execute(text, [max(size_bytes, 1)])

        for _ in range(TRIES):
            left = (-at() - before_bytes - 400) % SEGMENT_BYTES
            # The headers of its pages are written as well.
            write(left - left // PAGE_BYTES * 24 - 100)
            session.execute(f"CREATE TABLESPACE later LOCATION '{folder}'".encode())
            row = session.execute("SELECT oid::bigint FROM pg_tablespace WHERE spcname = 'later'").fetchone()
            assert row is not None
            oids.append(int(row[0]))
            session.execute("DROP TABLESPACE later")
            inside, across = judge(read_segments(server.data_dir / "pg_wal"))
            assert sorted(made.oid for made in inside + across) == sorted(oids)
            assert {made.location for made in inside + across} == {str(folder).encode()}
            if across:
                break
            # How much the server wrote between: the rows of its catalogues, and their first pages' images.
            made = max(inside, key=lambda one: one.start)
            half = SEGMENT_BYTES // 2
            before_bytes += (made.start.offset + half) % SEGMENT_BYTES - half + 400
    assert len(across) == 1, "no record lay over a segment's end"
