"""``pitr expire`` on a real server with its daemon: chains go, and all that stays is really restored."""

from __future__ import annotations

import time

import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_postgres import table_digests

# The shortest that may be configured.
WINDOW_S = 10


def _expire(site: Site, *more: object, exit_code: int | None = 0) -> dict[str, object]:
    return site("expire", "--identity", site.identity, "--json", *more, exit_code=exit_code).data


def _take(site: Site, kind: str, number: int) -> str:
    site.server.execute("UPDATE wide SET text = 'round ' || %s WHERE mod(id, 50) = %s", number, number)
    taken = site("backup", "--type", kind, "--json").data["backup"]
    assert taken["type"] == kind
    site.server.execute("SELECT pg_switch_wal()")
    return str(taken["backup"])


def _leave_interrupted(site: Site) -> str:
    """Leave in two regions what a backup of years ago has stored, of which nobody knows any more."""
    backup = "20200101T000000Z-full-0badcafe"
    for region in site.regions[:2]:
        path = next(path for key, path in region.objects("backups/").items() if "/pack-" in key)
        pack = path.parent.parent / backup / path.name
        pack.parent.mkdir()
        pack.write_bytes(b"of nobody")
    return backup


def test_a_shrunken_window_drops_a_chain_and_all_that_stays_is_restored(make_site: MakeSite) -> None:
    site = make_site(settings={"summarize_wal": "on"})
    server = site.server
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat(md5(g::text), 5) AS text FROM generate_series(1, 5000) g"
    )
    site.start_daemon()
    old = [*site.backups(), *(_take(site, kind, n) for n, kind in enumerate(("full", "incr", "incr")))]
    kept = [_take(site, "full", 4), _take(site, "incr", 5)]
    site.wait_durable()
    kept_from = time.monotonic()

    interrupted = _leave_interrupted(site)
    plan = _expire(site)
    assert plan["expired"] == []
    (named,) = plan["interrupted"]  # type: ignore[misc]
    assert named["backup"] == interrupted
    assert site("expire", "--json").data["is_confirmed"] is False
    site.set_option('pitr_window = "35d"', f'pitr_window = "{WINDOW_S}s"')
    site.set_option("minimum_backups = 2", "minimum_backups = 1")
    # The window moves past the second full backup, but not past the incremental one that comes now.
    while time.monotonic() - kept_from < WINDOW_S + 2:
        time.sleep(1)
    kept.append(_take(site, "incr", 6))
    site.wait_durable()
    expected = table_digests(server.dsn)

    words = site("expire", "--confirm", "--yes", exit_code=2)
    assert "--identity FILE" in words.stderr
    refused = site("expire", "--confirm", "--identity", site.identity, exit_code=2)
    assert "must be confirmed" in refused.stderr
    shown = site("expire")
    assert f"interrupted backup {interrupted}: EXPIRE" in shown.stdout
    assert all(f"EXPIRE   {name.rpartition('/')[2]}" in shown.stdout for name in old)
    before = {region.name: len(region.objects()) for region in site.regions}
    done = _expire(site, "--confirm", "--yes", "--grace", "1ms")
    assert done["expired"] == [name.rpartition("/")[2] for name in old]
    assert [one["backup"] for one in done["kept"]] == kept  # type: ignore[index, attr-defined]
    again = _expire(site, "--confirm", "--yes", "--grace", "1ms")
    assert again["expired"] == []
    for region in site.regions:
        assert len(region.objects()) < before[region.name]
        names = {key.rpartition("/")[2] for key in region.objects("manifests/")}
        assert names == set(kept)
        assert {key.split("/")[3] for key in region.objects("backups/")} == set(kept)

    # The daemon goes on, and its next head counts what is left.
    assert [one["backup"] for one in site("backups", "list", "--json").data["backups"]] == kept
    site("catalogue", "check")
    kept.append(_take(site, "incr", 7))
    server.execute("INSERT INTO wide VALUES (0, 'after the last backup')")
    site.wait_durable()
    latest = table_digests(server.dsn)
    assert latest != expected
    site("catalogue", "check")
    assert site.daemon.stop() == 0, site.daemon.tail()
    site("catalogue", "rebuild")
    site("catalogue", "check")

    for number, backup in enumerate(kept):
        site.restore("immediate", site.folder / f"r{number}", "--backup", backup, "--action", "none")
    into = site.folder / "latest"
    restored = site.restore("latest", into, "--start")
    assert table_digests(restored.data["dsn"]) == latest
    site.examine(into)
    end = restored.data["plan"]["wal_end"]
    alone = site.folder / "alone"
    restored = site.restore(f"lsn:{end}", alone, "--start", regions=site.regions[2:])
    assert table_digests(restored.data["dsn"]) == latest
    site.daemon.start()
    site.wait_durable()
    assert site.daemon.stop() == 0, site.daemon.tail()


def test_a_region_that_lacks_a_copy_or_is_full_of_junk_is_set_aside_and_two_freeze_expiry(
    make_site: MakeSite,
) -> None:
    site = make_site()
    site.start_daemon()
    site.wait_durable()
    assert site.daemon.stop() == 0, site.daemon.tail()
    confirmed = ("expire", "--confirm", "--yes", "--identity", site.identity, "--json")
    packs = [
        next(path for key, path in one.objects("backups/").items() if "/pack-" in key) for one in site.regions
    ]
    body = packs[1].read_bytes()
    packs[1].unlink()
    done = site("expire", "--json")
    (aside,) = done.data["set_aside"]
    assert "1 copies of what stays are missing" in aside["reason"]
    assert "pitr repair" in aside["reason"]
    partly = site(*confirmed, exit_code=3)
    assert aside["region"] in partly.error["message"]
    packs[2].unlink()
    done = site("expire", "--json", exit_code=7)
    assert done.error["code"] == "PITR-7003"
    assert "1 copies of what stays are missing" in done.error["why"]
    for path in packs[1:]:
        path.write_bytes(body)
    manifest = next(iter(site.regions[0].objects("manifests/").values()))
    junk = [manifest.with_name(f"20200101T000000Z-full-{number:08x}") for number in range(40)]
    for path in junk:
        path.write_bytes(b"junk")
    (aside,) = site("expire", "--json").data["set_aside"]
    assert "cannot be used" in aside["reason"]
    assert aside["region"] in site(*confirmed, exit_code=3).error["message"]
    for path in junk:
        path.unlink()
    assert site("expire", "--json").data["set_aside"] == []
    # Where two of three regions are silent nobody knows the end.
    for region in site.regions[1:]:
        region.take_away()
    site("expire", exit_code=None)
    for region in site.regions[1:]:
        region.give_back()
    site.regions[2].take_away()
    partly = site("expire", "--confirm", "--yes", "--identity", site.identity, "--json", exit_code=3)
    assert "ap" in partly.error["message"]
    site.regions[2].give_back()


@pytest.mark.slow
def test_a_backup_that_runs_while_others_expire_is_whole(make_site: MakeSite) -> None:
    site = make_site()
    server = site.server
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat(md5(g::text), 20) AS text"
        " FROM generate_series(1, 100000) g"
    )
    site.start_daemon()
    site("backup", "--type", "full")
    old = site.backups()
    site.set_option('pitr_window = "35d"', f'pitr_window = "{WINDOW_S}s"')
    site.set_option("minimum_backups = 2", "minimum_backups = 1")
    begun = time.monotonic()
    while time.monotonic() - begun < WINDOW_S + 2:
        time.sleep(1)
    running = site.program.begin(
        "-c", site.config, "backup", "--type", "full", log=site.folder / "backup.log"
    )
    known = {name.rpartition("/")[2] for name in old}

    def has_begun() -> bool:
        taken = {key.split("/")[3] for region in site.regions for key in region.objects("backups/")}
        return bool(taken - known) or running.poll() is not None

    wait_until(has_begun, "the backup has put its first objects")
    done = _expire(site, "--confirm", "--yes", "--grace", "1ms")
    assert done["expired"] != []
    assert running.wait(120) == 0, (site.folder / "backup.log").read_text()
    site.wait_durable()
    newest = site("backups", "list", "--json").data["backups"][-1]["backup"]
    assert newest not in known
    expected = table_digests(server.dsn)
    into = site.folder / "restored"
    restored = site.restore("latest", into, "--start")
    assert restored.data["plan"]["backup"] == newest
    assert table_digests(restored.data["dsn"]) == expected
    site.examine(into)
    assert site.daemon.stop() == 0, site.daemon.tail()
