"""``pitr backups show``: bad pages with when they were last clean, and what looks like an attack."""

from __future__ import annotations

from fix_cli import MakeSite
from fix_postgres import RunningPostgres


def damage(server: RunningPostgres, table: str, block: int) -> str:
    """Flip a bit of a row in the server's own file, and leave a note beside it; return the file's path."""
    server.execute("CHECKPOINT")
    path = str(server.value("SELECT pg_relation_filepath(%s)", table))
    file = server.data_dir / path
    with file.open("r+b") as stream:
        stream.seek(block * 8192 + 4000)
        (byte,) = stream.read(1)
        stream.seek(block * 8192 + 4000)
        stream.write(bytes([byte ^ 1]))
    (file.parent / "READ_ME_TO_PAY.txt").write_text("pay")
    return path


def test_a_bad_page_is_shown_with_the_backup_in_which_it_was_last_clean(make_site: MakeSite) -> None:
    site = make_site(settings={"autovacuum": "off"})
    site.server.execute(
        "CREATE TABLE patients AS SELECT g AS id, md5(g::text) AS name FROM generate_series(1, 20000) g"
    )
    site.server.execute("VACUUM (FREEZE) patients")
    site.start_daemon()
    clean = site("backup", "--type", "full", "--json").data["backup"]
    assert site("backups", "show", clean["backup"], "--json").data["backup"]["signals"] == []
    path = damage(site.server, "patients", 11)
    told = site("backup", "--type", "full")
    assert "bad page: postgres.public.patients main block 11" in told.stderr
    worse = site("backup", "--type", "full", "--json").data["backup"]

    shown = site("backups", "show", "latest", "--json").data["backup"]
    assert shown["backup"] == worse["backup"]
    (finding,) = shown["findings"]
    assert (finding["relation"], finding["fork"], finding["block"], finding["path"]) == (
        "postgres.public.patients",
        "main",
        11,
        path,
    )
    assert finding["last_clean_in"] == clean["backup"]
    assert finding["first_bad_in"] not in {clean["backup"], worse["backup"]}
    (signal,) = [one for one in shown["signals"] if one["subject"].endswith("READ_ME_TO_PAY.txt")]
    assert signal["level"] == "critical"
    text = site("backups", "show", "latest").stdout
    for words in (f"last_clean_in {clean['backup']}", "block 11", "level critical", "READ_ME_TO_PAY.txt"):
        assert words in text
    assert site.daemon.stop() == 0, site.daemon.tail()
