"""A cluster that was promoted so often that its timelines have numbers with letters: archived and restored.

PostgreSQL writes them in hexadecimal in file names, and in decimal in history files and settings.
"""

from __future__ import annotations

import psycopg
import pytest
from fix_cli import MakeSite, Site, wait_until

from pitr.postgres.server_user import hand_over

pytestmark = pytest.mark.slow
# 0x0B, which 0x0A is the past of, and 0x10, whose last digit says nothing.
LAST = 0x10
SETTINGS = {"autovacuum": "off", "wal_keep_size": "1GB"}


def promote_again(site: Site) -> None:
    """Let the server be a standby for a moment, as after a failover and back."""
    server = site.server
    server.stop()
    signal = server.data_dir / "standby.signal"
    signal.touch()
    hand_over(signal, server.instance.user)
    site.start_server()
    server.instance.promote()
    wait_until(lambda: not server.value("SELECT pg_is_in_recovery()"), "the promotion")


def rows(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [str(row[0]) for row in connection.execute("SELECT v FROM a ORDER BY 1").fetchall()]


@pytest.mark.timeout(900)
def test_timelines_with_letters_in_their_numbers_are_archived_and_restored(make_site: MakeSite) -> None:
    site = make_site(settings=SETTINGS)
    site.server.execute("CREATE TABLE a (v text)")
    site.start_daemon()
    moments: dict[int, str] = {}
    for number in range(2, LAST + 1):
        promote_again(site)
        site.server.execute("INSERT INTO a VALUES (%s)", f"{number:02X} kept")
        moments[number] = f"lsn:{site.wait_durable()}"
        site.server.execute("INSERT INTO a VALUES (%s)", f"{number:02X} later")
        site.wait_durable()
    site.server.execute("CHECKPOINT")
    assert site.server.value("SELECT timeline_id FROM pg_control_checkpoint()") == LAST
    assert site.daemon.stop() == 0, site.daemon.tail()

    all_rows = sorted(f"{number:02X} {what}" for number in range(2, LAST + 1) for what in ("kept", "later"))
    done = site.restore("latest", site.folder / "latest", "--start")
    assert rows(done.data["dsn"]) == all_rows
    assert done.data["plan"]["timeline"] == f"{LAST:08X}"
    site.examine(site.folder / "latest")
    for number in (0x0A, 0x0F):
        kept = [row for row in all_rows if row <= f"{number:02X} kept"]
        for name, more in (("way", []), ("own", ["--timeline", number])):
            done = site.restore(moments[number], site.folder / f"{name}{number}", "--start", *more)
            assert rows(done.data["dsn"]) == kept, (number, more)
    told = site("timeline", "--json").data
    assert told["is_whole"] is True
    way = [one["timeline"] for one in told["branches"] if one["is_on_way"]]
    assert way == [f"{number:08X}" for number in range(1, LAST + 1)]
