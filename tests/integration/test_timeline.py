"""``pitr timeline`` on real archives: whole, with holes, with a region that lags, restored in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fix_cli import Done, MakeSite, Region, Site, wait_until
from fix_in_place import renew, restore_in_place
from fix_terminal import on_a_terminal

from pitr.wal.lsn import LSN

REGIONS = ["ap", "eu", "us"]


@pytest.fixture(scope="module")
def written(module_make_site: MakeSite) -> Site:
    """An archive of some segments after one base backup, all of it in all regions; nobody writes any more."""
    site = module_make_site(17, settings={"autovacuum": "off"})
    site.start_daemon()
    site.server.execute("CREATE TABLE a (i int)")
    _write_segments(site, 4)
    _settle(site)
    site.daemon.stop()
    return site


def _write_segments(site: Site, count: int) -> list[str]:
    """Write so many whole segments with a commit in each; return their names."""
    names = []
    for number in range(count):
        site.server.execute(f"INSERT INTO a VALUES ({number})")
        names.append(str(site.server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")))
        site.server.execute("SELECT pg_switch_wal()")
    site.server.execute("INSERT INTO a VALUES (-1)")
    site.wait_durable()
    return names


def _settle(site: Site) -> None:
    """Wait until every region has everything: repairs too."""

    def is_settled() -> bool:
        held = [set(region.objects()) for region in site.regions if region.path.exists()]
        return all(one == held[0] for one in held)

    wait_until(is_settled, "all regions hold the same")


def _wait_segment_of_backup(site: Site) -> None:
    """Wait until each region has the whole segment that the backup ended in.

    Once that is at quorum the catalogue knows of its pieces no more, though a region has those alone.
    """
    (backup,) = site("backups", "list", "--json").data["backups"]
    name = str(site.server.value("SELECT pg_walfile_name(%s::pg_lsn)", backup["stop_lsn"]))

    def is_whole() -> bool:
        held = [region.wal_segment(name) for region in site.regions]
        return all(any(key.split("/")[-1].startswith("s-") for key in one) for one in held)

    wait_until(is_whole, f"{name} is whole everywhere")


def _map(site: Site, *more: object, exit_code: int = 0) -> dict[str, Any]:
    return site("timeline", "--json", *more, exit_code=exit_code).data


def _spans(made: dict[str, Any], number: int = 0) -> list[dict[str, Any]]:
    spans = made["branches"][number]["spans"]
    assert isinstance(spans, list)
    return spans


def _is_planned(site: Site, lsn: LSN, *more: object) -> bool:
    return site("plan", f"lsn:{lsn}", *more, exit_code=None).exit_code == 0


def _segments(region: Region) -> list[str]:
    """The segments after the backup's, but for the last one."""
    names = sorted({key.split("/")[4] for key in region.objects("wal/")})
    return names[:-1]


def _middle(span: dict[str, Any]) -> LSN:
    start, end = LSN.parse(span["start"]), LSN.parse(span["end"])
    return LSN((start.offset + end.offset) // 2)


def _check_plans(site: Site, made: dict[str, Any]) -> None:
    """What the map says, the planner does."""
    for branch in made["branches"]:
        named = ["--archive", branch["archive"], "--timeline", int(branch["timeline"], 16)]
        for span in branch["spans"]:
            more = named if span["aside"] else []
            assert _is_planned(site, _middle(span), *more) == span["is_restorable"], span


def test_a_whole_archive_is_restorable_from_each_region_on_its_host_and_on_a_bare_machine(
    written: Site,
) -> None:
    made = _map(written)
    assert made["is_whole"] is True
    assert made["gaps"] == []
    assert made["end"]["is_certain"] is True
    *before, last = _spans(made)
    assert [span["cause"] for span in before] == ["no-backup"]
    assert (last["is_restorable"], last["regions"], last["lacking"]) == (True, REGIONS, [])
    assert made["first"]["lsn"] == last["start"]
    assert made["last"]["lsn"] == last["end"]
    _check_plans(written, made)
    words: list[object] = ["timeline", "--identity", written.identity, "--json"]
    for url in written.region_urls:
        words += ["--from", url]
    bare = written.program(*words).data
    assert [span["is_restorable"] for span in _spans(bare)] == [
        span["is_restorable"] for span in _spans(made)
    ]
    assert _spans(bare)[-1]["regions"] == sorted(written.region_urls)


def test_people_get_columns_and_on_a_terminal_a_tree(written: Site) -> None:
    plain = written("timeline").stdout
    assert "every moment of it" in plain
    assert plain.count("\nyes ") == 1
    assert "\x1b" not in plain
    code, shown = on_a_terminal(written.program, ["-c", written.config, "timeline"], "")
    assert code == 0
    assert "the way leads here" in shown
    assert "█" in shown
    assert "there is no gap" not in written("timeline", "--gaps-only").stdout


def _hide(region: Region, segment: str) -> Iterator[None]:
    folder = next(iter(region.wal_segment(segment).values())).parent
    away = region.path.with_name(f"{region.name}.{segment}")
    folder.rename(away)
    yield
    away.rename(folder)


def test_a_segment_that_one_region_lacks_is_told_and_is_no_gap(written: Site) -> None:
    missing = _segments(written.regions[0])[3]
    for _ in _hide(written.regions[0], missing):
        made = _map(written)
        alone = _map(written, "--region", "eu", exit_code=4)
    assert made["is_whole"] is True
    restorable = [span for span in _spans(made) if span["is_restorable"]]
    assert [span["regions"] for span in restorable] == [REGIONS, ["ap", "us"], ["ap", "us"]]
    # In the hole, and behind it, where that region has WAL again and no backup from which it leads on.
    reasons = [one["reason"] for span in restorable for one in span["lacking"]]
    assert reasons == ["wal-missing", "no-backup"]
    # Whoever reads that region alone has a gap there.
    assert alone["gaps"][0]["segments"] == {"first": missing, "last": missing, "count": 1}


def test_a_segment_that_no_region_has_is_a_gap_with_its_name_and_its_times(written: Site) -> None:
    whole = _spans(_map(written))[-1]
    missing = _segments(written.regions[0])[3]
    hidden = [_hide(region, missing) for region in written.regions]
    for one in hidden:
        next(one)
    done = written("timeline", "--json", exit_code=4)
    plain = written("timeline", "--gaps-only", exit_code=4)
    try:
        made = done.data
        _check_plans(written, made)
    finally:
        for one in hidden:
            next(one, None)
    assert done.error["code"] == "PITR-4003"
    assert made["is_whole"] is False
    hole, after = made["gaps"]
    assert hole["cause"] == "wal-missing"
    assert hole["segments"] == {"first": missing, "last": missing, "count": 1}
    assert hole["first_at"] < hole["last_at"]
    assert hole["regions"] == []
    assert (after["cause"], after["regions"], after["end"]) == ("no-backup", REGIONS, whole["end"])
    assert f"since the hole from {hole['start']} to {hole['end']}" in after["detail"]
    assert missing in plain.stdout
    assert missing in plain.stderr
    assert "next: pitr backup" in plain.stderr
    assert "yes" not in plain.stdout.split()
    assert _map(written)["is_whole"] is True


def test_a_damaged_segment_is_told_from_a_missing_one(written: Site) -> None:
    damaged = _segments(written.regions[0])[3]
    kept: dict[Any, bytes] = {}
    for region in written.regions:
        for path in region.wal_segment(damaged).values():
            kept[path] = path.read_bytes()
            path.chmod(0o644)
            path.write_bytes(bytes(len(kept[path])))
    try:
        made = _map(written, exit_code=4)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert made["gaps"][0]["cause"] == "wal-damaged"


def test_a_region_without_a_pack_of_the_backup_does_not_suffice(written: Site) -> None:
    pack = next(path for key, path in written.regions[1].objects("backups/").items() if "/pack-" in key)
    away = written.folder / "pack-away"
    pack.rename(away)
    try:
        made = _map(written)
    finally:
        away.rename(pack)
    last = _spans(made)[-1]
    assert made["is_whole"] is True
    assert last["regions"] == ["ap", "eu"]
    assert last["lacking"] == [{"region": "us", "reason": "no-backup"}]


def test_a_region_that_lags_is_behind_and_then_is_not(make_site: MakeSite) -> None:
    site = make_site(17, settings={"autovacuum": "off"})
    site.server.execute("CREATE TABLE a (i int)")
    site.start_daemon()
    _wait_segment_of_backup(site)
    _settle(site)
    site.regions[2].take_away()
    _write_segments(site, 2)
    site.daemon.kill()
    site.regions[2].give_back()
    made = _map(site)
    assert made["is_whole"] is True
    spans = _spans(made)
    print(spans)
    # What the killed daemon had not signed for yet may be a span of its own at the end.
    early = max(number for number, one in enumerate(spans) if one["regions"] == REGIONS)
    assert len(spans) > early + 1
    for late in spans[early + 1 :]:
        assert late["regions"] == ["eu", "us"]
        assert late["lacking"] == [{"region": "ap", "reason": "behind"}]
    site.daemon.start()
    wait_until(lambda: _spans(_map(site))[-1]["regions"] == REGIONS, "ap has caught up", every_s=1)


@pytest.mark.slow
def test_after_a_restore_in_place_both_histories_are_on_the_map(make_site: MakeSite) -> None:
    site = make_site(17, settings={"autovacuum": "off"})
    site.server.execute("CREATE TABLE a (i int)")
    site.start_daemon()
    target = site.wait_durable()
    _write_segments(site, 2)
    end_of_first = site.wait_durable()
    restore_in_place(site, f"lsn:{target}")
    renew(site)
    site.start_daemon(backups=2)
    _write_segments(site, 1)
    _settle(site)
    site.daemon.stop()

    made = _map(site)
    assert made["archive"].endswith("/00000002")
    assert made["timeline"] == "00000002"
    first, second = made["branches"]
    assert (first["epoch"], first["timeline"], first["is_on_way"]) == (1, "00000001", True)
    assert (second["epoch"], second["timeline"], second["is_on_way"]) == (2, "00000002", True)
    assert second["parent"] == {
        "archive": first["archive"],
        "timeline": "00000001",
        "lsn": first["left_at"],
    }
    aside = [span for span in first["spans"] if span["aside"]]
    assert {span["aside"] for span in aside} == {"superseded-epoch"}
    assert aside[0]["start"] == first["left_at"]
    assert LSN.parse(aside[-1]["end"]) >= end_of_first
    assert aside[-1]["is_restorable"] is True
    assert made["is_whole"] is True
    _check_plans(site, made)

    # Asked for by name, the old epoch is the way, and the new one lies aside.
    old = _map(site, "--archive", first["archive"])
    assert old["timeline"] == "00000001"
    assert {span["aside"] for span in old["branches"][1]["spans"]} == {"other-timeline"}
    _check_plans(site, made)
    done: Done = site("timeline")
    assert f"--archive {first['archive']} --timeline 1" in done.stdout
