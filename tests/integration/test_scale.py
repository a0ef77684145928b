"""Very many files and very large ones: every command in bounded memory, and the cluster comes back."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import MakeSite, Site
from fix_measured import measured
from fix_postgres import RunningPostgres, table_digests

TABLES = 200_000
_SESSIONS = 4
_TABLES_LOOKED_AT = 4_000
_BIG_BYTES = 3 << 30
_BIG_ROWS = 1_600_000


def make_tables(server: RunningPostgres, count: int) -> None:
    """Make tables of one page each; without a column of varying length none has a TOAST table."""

    def some(session: int) -> None:
        server.execute(
            f"DO $$ BEGIN FOR n IN {session}..{count - 1} BY {_SESSIONS} LOOP"
            " EXECUTE format('CREATE TABLE t%s AS SELECT %s AS n', n, n);"
            # Locks are kept until a transaction's end, and there is room for some thousands.
            " IF n / 4 % 1000 = 0 THEN COMMIT; END IF; END LOOP; END $$"
        )

    threads = [threading.Thread(target=some, args=(session,)) for session in range(_SESSIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.value("SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]+$'") == count


def change_some(server: RunningPostgres) -> None:
    """Change one table of a hundred, drop some, and make some."""
    server.execute(
        f"DO $$ BEGIN FOR n IN 0..{TABLES - 1} BY 100 LOOP"
        " EXECUTE format('UPDATE t%s SET n = -n', n);"
        " IF n % 1000 = 0 THEN EXECUTE format('DROP TABLE t%s', n + 1);"
        " EXECUTE format('CREATE TABLE new%s AS SELECT %s AS n', n, n); END IF;"
        " IF n % 50000 = 0 THEN COMMIT; END IF; END LOOP; END $$"
    )


def content(dsn: str) -> list[tuple[str, int]]:
    """Return the names of all tables, and the rows of some, with all that were changed among them."""
    with psycopg.connect(dsn, connect_timeout=20) as connection:
        names = [
            str(name)
            for (name,) in connection.execute(
                "SELECT relname FROM pg_class WHERE relname ~ '^(t|new)[0-9]+$' ORDER BY 1"
            )
        ]
        chosen = set(names[:: len(names) // _TABLES_LOOKED_AT])
        chosen |= {name for name in names if name.startswith("new") or name.endswith("00")}
        found = [(name, 0) for name in names]
        for name in sorted(chosen):
            row = connection.execute(f"SELECT sum(n) FROM {name}".encode()).fetchone()
            assert row is not None
            found.append((name, int(row[0])))
        return found


def back_up(site: Site, kind: str) -> dict[str, Any]:
    """Take a backup in a process of its own, as it is done without a daemon."""
    taken = measured(site, "backup", "--standalone", "--type", kind)
    backup = taken.done.data["backup"]
    print(
        f"{kind}: {backup['files'] / taken.seconds:.0f} files and"
        f" {backup['size_bytes'] / taken.seconds / (1 << 20):.0f} MiB a second"
    )
    assert backup["type"] == kind, taken.done.data["notes"]
    assert isinstance(backup, dict)
    return backup


def restore(site: Site, into: Path, *more: object) -> dict[str, Any]:
    """Restore to the end of the archive in a process of its own, with pg_verifybackup."""
    words = ["--identity", site.identity, "--to", "latest", "--into", into, "--yes", *more]
    restored = measured(site, "restore", *words)
    seconds = restored.done.data["seconds"]
    print(
        f"restore: {restored.done.data['files'] / seconds['fetch']:.0f} files and"
        f" {restored.done.data['size_bytes'] / seconds['fetch'] / (1 << 20):.0f} MiB a second; {seconds}"
    )
    assert "verify" in seconds
    return restored.done.data


@pytest.mark.slow
def test_two_hundred_thousand_tables_pass_through_every_command_in_bounded_memory(
    make_site: MakeSite,
) -> None:
    site = make_site(settings={"autovacuum": "off", "shared_buffers": "256MB"}, init=False)
    server = site.server
    make_tables(server, TABLES)
    server.checkpoint()
    site.init()
    full = back_up(site, "full")
    assert full["files"] > TABLES
    change_some(server)
    server.checkpoint()
    incremental = back_up(site, "incr")
    assert incremental["parent"] == full["backup"]
    assert incremental["stored_bytes"] < full["stored_bytes"] / 5
    expected = content(server.dsn)

    measured(site, "backups", "list")
    for backup in (full, incremental):
        shown = measured(site, "backups", "show", backup["backup"]).done.data
        assert shown["backup"]["files"] == backup["files"]
    measured(site, "catalogue", "rebuild")
    measured(site, "catalogue", "check")
    assert measured(site, "expire").done.data["expired"] == []

    into = site.folder / "restored"
    site.started.append(into)
    assert content(restore(site, into, "--start")["dsn"]) == expected
    # The catalogues with all their indexes, which are what grew; each table and its rows would take an hour.
    site.examine(into, "--schema=pg_catalog", "--table=t*00", "--table=new*")
    site.started.clear()

    scratch, identity = site.folder / "scratch", site.identity
    made = measured(site, "backups", "consolidate", "--scratch", scratch, "--identity", identity).done.data
    assert (made["backup"]["type"], made["backup"]["stands_for"]) == ("full", incremental["backup"])
    assert made["backup"]["files"] == incremental["files"]


@pytest.mark.slow
def test_a_table_of_three_gibibytes_passes_in_bounded_memory(make_site: MakeSite) -> None:
    site = make_site(settings={"autovacuum": "off", "max_wal_size": "1GB"}, init=False)
    # One region: three copies of it say no more of memory, and take a disk that few have.
    site = replace(site, regions=site.regions[:1], quorum=1)
    server = site.server
    server.execute("CREATE TABLE big (id int, text text STORAGE plain)")
    server.execute(
        "INSERT INTO big SELECT g, (SELECT string_agg(encode(sha512(int8send(g * 15 + n)), 'hex'), '')"
        " FROM generate_series(1, 15) n) FROM generate_series(1::bigint, %s) g",
        _BIG_ROWS,
    )
    server.execute("VACUUM FREEZE big")
    server.checkpoint()
    path = server.data_dir / str(server.value("SELECT pg_relation_filepath('big')"))
    assert server.value("SELECT pg_relation_size('big')") > _BIG_BYTES
    assert [Path(f"{path}{end}").stat().st_size for end in ("", ".1", ".2")] == [1 << 30] * 3
    site.init()
    full = back_up(site, "full")

    # Each of the segments: one page of a hundred.
    server.execute(
        "UPDATE big SET text = upper(text) WHERE ctid IN (SELECT format('(%s,1)', block)::tid"
        " FROM generate_series(0, pg_relation_size('big') / 8192 - 1, 100) block)"
    )
    server.checkpoint()
    incremental = back_up(site, "incr")
    share = incremental["stored_bytes"] / full["stored_bytes"]
    assert share < 0.03, "the changed pages, those of the new rows, and what else a cluster writes"
    expected = table_digests(server.dsn)

    into = site.folder / "restored"
    site.started.append(into)
    assert table_digests(restore(site, into, "--start")["dsn"]) == expected
    site.examine(into)
