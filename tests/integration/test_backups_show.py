"""``pitr backups show``: bad pages with when they were last clean, and what looks like an attack."""

from __future__ import annotations

import re
import urllib.request

from fix_cli import MakeSite, wait_until
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


def test_a_bad_page_that_a_scheduled_backup_finds_is_seen_by_those_who_do_not_ask(
    make_site: MakeSite,
) -> None:
    site = make_site(settings={"autovacuum": "off"})
    site.server.execute("CREATE TABLE visits AS SELECT g AS id FROM generate_series(1, 20000) g")
    site.server.execute("VACUUM (FREEZE) visits")
    damage(site.server, "visits", 11)
    site.set_option('metrics_listen = "off"', 'metrics_listen = "127.0.0.1:0"')
    # Without a backup the timetable takes one at once; nobody waits for it.
    site.start_daemon()
    wait_until(lambda: "bad page" in site.daemon.tail(), "the log tells of the page")
    (line,) = [line for line in site.daemon.tail().splitlines() if "bad page" in line]
    for words in ("[error", "relation=postgres.public.visits", "fork=main", "block=11"):
        assert words in re.sub(r"\x1b\[[0-9;]*m", "", line), line
    address = re.findall(r"address=(http\S+)", site.daemon.tail())[-1]

    def has_metric() -> bool:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return "\npitr_backup_bad_pages 1.0\n" in answer.read().decode()

    wait_until(has_metric, "the metric counts the page")
    assert "1 page of the server is bad: postgres.public.visits main block 11" in site("status").stderr
    # The next daemon knows it from the regions.
    assert site.daemon.stop() == 0, site.daemon.tail()
    site.start_daemon()
    wait_until(lambda: "1 page of the server is bad" in site("status").stderr, "it is known after a start")
    assert site.daemon.stop() == 0, site.daemon.tail()
