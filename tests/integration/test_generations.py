"""A cluster that is restored from its own archive, again and again: each generation writes as an epoch."""

from __future__ import annotations

import psycopg
import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_in_place import renew, restore_in_place

from pitr.layout import ArchiveId

# Two minutes each; that a restored server gets its own epoch is also in test_restored_in_place.py.
pytestmark = pytest.mark.slow
MAJORS = [pytest.param(17, id="pg17"), pytest.param(18, id="pg18")]
# Those that live on for a while; the last one begins with nothing of its own.
GENERATIONS = 2


def rows(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [str(row[0]) for row in connection.execute("SELECT v FROM a ORDER BY 1").fetchall()]


def archive(site: Site, epoch: int) -> str:
    identifier = site.server.value("SELECT system_identifier::text FROM pg_control_system()")
    return str(ArchiveId(int(str(identifier)), epoch))


def live(site: Site, generation: int) -> str:
    """Write what belongs to a generation; return a moment in it."""
    site.server.execute("INSERT INTO a VALUES (%s)", f"{generation} kept")
    moment = site.wait_durable()
    # In the same segment: what the next generation has of this one's timeline proves whose it is.
    site.server.execute("INSERT INTO a VALUES (%s)", f"{generation} left behind")
    site.server.execute("SELECT pg_switch_wal()")
    site.wait_durable()
    return f"lsn:{moment}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("major", MAJORS)
def test_restores_of_restores_each_have_an_epoch_and_every_ones_targets_stay(
    make_site: MakeSite, major: int
) -> None:
    site = make_site(major, settings={"autovacuum": "off"})
    site.server.execute("CREATE TABLE a (v text)")
    site.start_daemon()
    moments = [live(site, 1)]
    for generation in range(2, GENERATIONS + 2):
        restore_in_place(site, moments[-1])
        wait_until(lambda: not site.server.value("SELECT pg_is_in_recovery()"), "the promotion")
        made = renew(site).data
        assert made["archive"] == archive(site, generation)
        parent = made["parent"]
        assert (parent["epoch"], parent["timeline"]) == (generation - 1, f"{generation - 1:08X}")
        assert renew(site).data["is_new_epoch"] is False
        if generation == GENERATIONS + 1:
            break
        site.start_daemon(backups=generation)
        moments.append(live(site, generation))
        assert site.server.value("SELECT timeline_id FROM pg_control_checkpoint()") == generation

    # The last generation begins with nothing of its own: its past is that of all before.
    site.daemon.start()
    try:
        wait_until(lambda: len(site.backups()) > GENERATIONS, "its own backup", timeout_s=150)
    finally:
        print(site.daemon.tail())
    site.wait_durable()
    assert site.daemon.stop() == 0, site.daemon.tail()
    for generation, moment in enumerate(moments, start=1):
        kept = [f"{number} kept" for number in range(1, generation + 1)]
        own = ["--archive", archive(site, generation)]
        for number, (target, expected, more) in enumerate(
            [
                (moment, kept, []),
                ("latest", [*kept, f"{generation} left behind"], own),
            ]
        ):
            into = site.folder / f"generation{generation}-{number}"
            done = site.restore(target, into, "--start", *more)
            assert rows(done.data["dsn"]) == sorted(expected), (generation, target, more)
    done = site.restore("latest", site.folder / "last", "--start")
    assert rows(done.data["dsn"]) == [f"{number} kept" for number in range(1, GENERATIONS + 1)]
    site.examine(site.folder / "last")
    assert done.data["plan"]["archive"] == archive(site, GENERATIONS + 1)

    told = site("timeline", "--json").data
    assert told["is_whole"] is True
    way = [(one["epoch"], one["timeline"]) for one in told["branches"] if one["is_on_way"]]
    assert way == [(number, f"{number:08X}") for number in range(1, GENERATIONS + 2)]
    aside = {
        (span["archive"], span["timeline"])
        for branch in told["branches"]
        for span in branch["spans"]
        if span["aside"] is not None
    }
    assert aside == {(archive(site, number), f"{number:08X}") for number in range(1, GENERATIONS + 1)}
    site("catalogue", "check")
