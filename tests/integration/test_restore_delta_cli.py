"""``pitr restore --delta`` as a person meets it: what it says before it does anything, and afterwards."""

from __future__ import annotations

from fix_cli import MakeSite
from fix_postgres import table_digests

from pitr.postgres.server_user import hand_over
from pitr.restore_journal import Journal, WorkDirectory


def test_the_plan_says_what_is_kept_and_the_restore_keeps_it(make_site: MakeSite) -> None:
    site = make_site(settings={"autovacuum": "off"})
    server = site.server
    server.execute(
        "CREATE TABLE noise AS SELECT g AS n, sha512(g::text::bytea) AS b FROM generate_series(1, 99999) g"
    )
    # The first look at rows marks their pages; frozen ones have nothing left to be marked.
    server.execute("VACUUM (FREEZE, ANALYZE)")
    site.start_daemon()
    site("backup", "--json")
    server.execute("INSERT INTO noise VALUES (0, 'after the backup')")
    site.wait_durable()
    expected = table_digests(server.dsn)
    into = site.folder / "restored"
    words = site.restore_words("latest", into)
    assert "--delta only" in site.program(*words, "--replace-cluster", "7", exit_code=2).stderr
    assert "absolute path" in site.program(*words, "--wal-dir", "wal", exit_code=2).stderr
    assert (
        "given twice"
        in site.program(*words, "--tablespace-map", "a=/b", "--tablespace-map", "a=/c", exit_code=2).stderr
    )
    assert site.restore("latest", into, "--delta").data["delta"] is None
    assert "--delta" in site.program(*words, exit_code=1).stderr

    planned = site.restore("latest", into, "--delta", "--dry-run").data
    assert planned["delta"]["kept_bytes"] > planned["plan"]["restored_bytes"] // 2
    assert planned["delta"]["fetched_bytes"] < planned["plan"]["backup_bytes"] // 2
    people = [word for word in words if word not in {"--json", "--yes"}]
    shown = site.program(*people, "--delta", "--dry-run").stdout
    assert "are right there already" in shown
    assert "is kept until the restore has succeeded" in shown

    done = site.restore("latest", into, "--delta", "--start").data
    # The plan compares, the restore proves: a frame that zstd makes otherwise today is fetched.
    assert 0.99 < done["kept_bytes"] / planned["delta"]["kept_bytes"] <= 1
    assert done["fetched_bytes"] > planned["delta"]["fetched_bytes"] * 0.9
    # What lies between frames that are near to each other is fetched with them, and not planned.
    assert done["fetched_bytes"] < planned["delta"]["fetched_bytes"] * 1.1 + 512 * 1024
    assert table_digests(done["dsn"]) == expected
    site.examine(into)


def test_a_run_that_was_killed_when_it_had_its_files_goes_on_whatever_lies_there(make_site: MakeSite) -> None:
    site = make_site()
    space, moved, wal = (site.folder / name for name in ("space", "moved", "wal"))
    space.mkdir(mode=0o700)
    hand_over(space, site.server.instance.user)
    site.server.execute(f"CREATE TABLESPACE fast LOCATION '{space}'")
    site.server.execute("CREATE TABLE spaced TABLESPACE fast AS SELECT 1 AS n")
    site.start_daemon()
    site("backup", "--json")
    target = f"lsn:{site.server.value('SELECT pg_current_wal_flush_lsn()')}"
    # What comes after the target says where replay ends, so it must be there at the first look.
    site.server.execute("CREATE TABLE later ()")
    site.wait_durable()
    into = site.folder / "restored"
    places = ("--tablespace-map", f"fast={moved}", "--wal-dir", wal)
    done = site.restore(target, into, "--delta", "--action", "none", *places).data
    assert [link.readlink() for link in (into / "pg_tblspc").iterdir()] == [moved]
    assert any(path.is_file() for path in moved.rglob("*"))
    assert (into / "pg_wal").readlink() == wal
    # The daemon goes on taking backups, and from another one it would be another plan.
    words = ("--delta", "--dry-run", "--backup", done["plan"]["backup"], *places)
    work = WorkDirectory.of(into)
    journal = work.read()
    assert journal is not None
    work.write(Journal(journal.plan_sha256, "recovering"))
    assert site.restore(target, into, *words).data["delta"] is None
    work.write(Journal("another plan", "recovering"))
    refused = site.restore(target, into, *words, exit_code=1)
    assert "another plan" in refused.stderr
