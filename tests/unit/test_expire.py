"""Expiry in three regions: what goes and what stays; killed at every step, refused, read from one alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import fix_archive as fix
import pytest
from fix_expiry import DEADLINE, HOUR_S, QUARTER, SEG, ExpiryHouse, FaultPoint, Killed
from fix_stores import FaultyStore

from pitr.abandoned import ABANDONED_MAX, abandoned, abandoned_before
from pitr.catalogue.backup_record import BackupManifest, PageFinding
from pitr.catalogue.backup_signs import BackupSigns
from pitr.catalogue.expiry_record import ExpireRecord
from pitr.catalogue.lease_record import Holder, LeaseRecord
from pitr.catalogue_rebuild import check
from pitr.errors import AlreadyRunning, NotAuthentic
from pitr.expire import carry_out, put_record
from pitr.expire_check import (
    freezing_signals,
    missing_copies,
    regions_needed,
    without_doubtful,
    without_lacking,
)
from pitr.expire_record import used_keys
from pitr.layout import (
    ArchiveId,
    PieceKey,
    backup_lease,
    envelope_key,
    expiry_key,
    lease_key,
    manifest_key,
    pack_key,
    wal_index_key,
)
from pitr.pipeline.sign import Signer, sign_record
from pitr.planner import plan_restore
from pitr.recovery import RecoveryTarget
from pitr.region_heads import compare_heads
from pitr.retention import what_stays
from pitr.verified import RefusedObject
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from storage.regions import Region
from storage.store import StoreRefused, StoreUnavailable
from verifiers.base import Severity
from verifiers.chain import check_chain

HOURS = 24
WINDOW_H = 12.0


def check_all_reads(house: ExpiryHouse, *names: str) -> None:
    """Everything that is listed must be whole, for a reader of these regions."""
    survey, result, _ = house.survey(*names)
    assert result.refused == ()
    stored = {name: house.keys(name) for name in names or house.stores}
    for backup in survey.backups:
        plan = plan_restore(RecoveryTarget("immediate"), survey, backup=backup.backup)
        wanted = [each.key for each in (*backup.packs, *backup.indexes)]
        wanted += [str(link.unit.key) for link in plan.links]
        assert any(set(wanted) <= held for held in stored.values())
    findings = check_chain(house.repository(*names), house.archive)
    assert [each for each in findings if each.severity is not Severity.OK] == []


def test_what_the_window_does_not_need_goes_and_all_else_stays() -> None:
    house = ExpiryHouse(HOURS)
    before = house.keys()
    done = house.expire(WINDOW_H)
    # The window begins at hour 12; the newest backup before it is of hour 10, its chain of hour 8.
    assert [each.started_at for each in done.plan.expired] == [house.at(hour) for hour in (0, 2, 5)]
    assert done.record is not None
    assert [(str(wal.first), str(wal.last)) for wal in done.record.wal] == [
        ("000000010000000000000001", "000000010000000000000008")
    ]
    assert done.record.wal[0].pieces == (1, 32)
    for region in house.stores:
        gone = before - house.keys(region)
        kinds = {kind: len([key for key in gone if key.startswith(kind)]) for kind in ("wal/", "walindex/")}
        # 32 pieces and the six segments that were made of some; two indexes of 16 pieces.
        assert kinds == {"wal/": 38, "walindex/": 2}
        assert len([key for key in gone if key.startswith("manifests/")]) == 3
        assert len([key for key in gone if key.startswith("backups/")]) == 6
        # Of three backups, of eight hours, and of five segments; the sixth was sealed with its hour's key.
        assert len([key for key in gone if key.startswith("envelopes/")]) == 16
        assert not [key for key in gone if key.split("/")[0] in ("heads", "epochs", "history", "repository")]
    check_all_reads(house)
    assert house.expire(WINDOW_H).plan.is_empty


class Planting(FaultPoint):
    """Puts an object that is none of ours among the WAL indexes as the deletions begin."""

    def __init__(self, house: ExpiryHouse) -> None:
        super().__init__()
        self.key = f"walindex/{house.archive}/0-nobody-knows"
        self._store = house.stores["eu"]

    def met(self, change: str) -> None:
        super().met(change)
        if change.startswith("delete"):
            self._store.put(self.key, b"?")


def test_a_strange_key_among_the_indexes_stays_and_stops_nothing() -> None:
    house = ExpiryHouse(HOURS)
    planting = Planting(house)
    done = house.expire(WINDOW_H, point=planting)
    assert house.stores["eu"].get(planting.key) == b"?"
    deleted = {one.region: one.deleted for one in done.outcomes}
    assert deleted["eu"] == deleted["us"] > 0


def test_a_run_that_is_killed_anywhere_is_finished_by_the_next_and_breaks_nothing_listed() -> None:
    house = ExpiryHouse(16)
    point = FaultPoint()
    house.expire(4.0, point=point)
    expected = {region: house.keys(region) for region in house.stores}
    kinds = [f"{change.split()[0]} {change.split()[2].split('/')[0]}" for change in point.changes]
    assert list(dict.fromkeys(kinds)) == [
        "put expired",
        "delete manifests",
        "delete backups",
        "delete wal",
        "delete walindex",
        "delete envelopes",
    ]
    # Where a kind of change begins and ends, and some between: those of one kind are alike.
    borders = {
        at + shift for at in range(1, len(kinds)) if kinds[at] != kinds[at - 1] for shift in (-1, 0, 1)
    }
    for kill_at in sorted(borders | set(range(8)) | set(range(0, len(kinds), 37))):
        house.begin_again()
        with pytest.raises(Killed):
            house.expire(4.0, point=FaultPoint(kill_at))
        check_all_reads(house)
        house.expire(4.0)
        assert {region: house.keys(region) for region in house.stores} == expected, kinds[kill_at]


class ThreeHourKeys(ExpiryHouse):
    """WAL of which three segments are sealed with one data key, and in one index: both go in two runs."""

    indexed_hours = 3

    def add_wal(self, hour: int) -> None:
        for number in range(4):
            begin = LSN((hour + 1) * SEG) + number * QUARTER
            at = fix.times(hour * HOUR_S + 600 * number + 700)
            self.house.piece(begin, begin + QUARTER, at, hour=hour // 3 * 3)


def test_a_data_key_whose_wal_goes_in_two_runs_goes_with_the_second() -> None:
    """Else one envelope would stay for each run, and whoever has the identity could open its WAL for ever."""
    house = ThreeHourKeys(HOURS)
    for _ in range(3):
        house.expire(WINDOW_H)
        house.now += timedelta(hours=4)
    repository = house.repository()
    used = {key for each in repository.manifests(house.archive).backups for key in each.manifest.key_ids}
    for timeline in repository.wal.timelines(house.archive):
        for key in repository.wal_objects(house.archive, timeline):
            used.add(repository.wal.header(key).header.key_id)
    assert house.keys(prefix="envelopes/") == {envelope_key(house.archive, key) for key in used}


def test_until_the_grace_has_passed_only_manifests_go() -> None:
    house = ExpiryHouse(HOURS)
    before = house.keys()
    house.expire(WINDOW_H, grace_h=1)
    assert {key.split("/")[0] for key in before - house.keys()} == {"manifests"}
    check_all_reads(house)
    house.now += timedelta(minutes=59)
    house.expire(WINDOW_H + 1)
    assert {key.split("/")[0] for key in before - house.keys()} == {"manifests"}
    house.now += timedelta(minutes=2)
    done = house.expire(WINDOW_H + 2)
    assert done.record is None
    assert {key.split("/")[0] for key in before - house.keys()} == {
        "manifests",
        "backups",
        "wal",
        "walindex",
        "envelopes",
    }
    check_all_reads(house)


def test_a_backup_that_is_being_taken_is_never_touched() -> None:
    """It has packs, index parts and an envelope, and no manifest yet."""
    house = ExpiryHouse(HOURS)
    running = f"{house.now - timedelta(days=30):%Y%m%dT%H%M%SZ}-full-0badcafe"
    key = house.house.keys.backup_key(house.now)
    taken = {pack_key(house.archive, running, 0, number, "0badcafe") for number in range(3)}
    envelope = f"envelopes/{house.archive}/{key.key_id.hex()}"
    for store in house.stores.values():
        store.put(envelope, house.house.store.get(envelope))
        for name in taken:
            store.put(name, b"x")
    house.expire(1.0)
    for region in house.stores:
        assert taken | {envelope} <= house.keys(region)


def interrupted(house: ExpiryHouse, backup: str, *names: str) -> set[str]:
    """Leave what an interrupted attempt has put in these regions; in all if none is named."""
    keys = {pack_key(house.archive, backup, 0, number, "0badcafe") for number in range(3)}
    for name in names or house.stores:
        for key in keys:
            house.stores[name].put(key, b"x")
    return keys


def test_an_attempt_that_nobody_goes_on_with_goes_and_a_younger_one_stays() -> None:
    house = ExpiryHouse(HOURS)
    before = abandoned_before(house.now, DEADLINE)
    old = f"{before - timedelta(seconds=1):%Y%m%dT%H%M%SZ}-full-0badcafe"
    young = f"{before + timedelta(hours=3):%Y%m%dT%H%M%SZ}-incr-0badcafe"
    gone, stay = interrupted(house, old, "eu", "us"), interrupted(house, young)
    strange = f"backups/{house.archive}/0-nobody-knows/pack"
    house.stores["eu"].put(strange, b"?")
    assert [each.backup for each in house.abandoned()] == [old]
    done = house.expire(24 * 365, grace_h=1)
    assert done.plan.expired == ()
    assert done.record is not None
    assert ExpireRecord.from_payload(done.record.to_payload()) == done.record
    assert gone <= house.keys("eu")
    assert house.abandoned() == ()
    # Whoever ended it now would have a backup of which packs are about to go.
    house.stores["ap"].put(manifest_key(house.archive, old), b"x")
    assert house.repository().manifests(house.archive).refused == ()
    house.now += timedelta(hours=2)
    house.expire(24 * 365)
    for region in house.stores:
        assert not gone & house.keys(region)
        assert stay <= house.keys(region)
        assert manifest_key(house.archive, old) not in house.keys(region)
    assert strange in house.keys("eu")
    check_all_reads(house)
    # What no region holds any more the next record names no longer.
    record = house.expire(1.0).record
    assert record is not None
    assert record.attempts == ()


def test_what_one_region_has_a_manifest_of_is_no_attempt() -> None:
    house = ExpiryHouse(HOURS)
    old = f"{abandoned_before(house.now, DEADLINE) - timedelta(days=1):%Y%m%dT%H%M%SZ}-full-0badcafe"
    interrupted(house, old)
    house.stores["eu"].put(manifest_key(house.archive, old), b"?")
    assert house.abandoned() == ()
    # One that does not answer may have it too: then the signed record says that it is no backup.
    assert [each.backup for each in house.abandoned("us", "ap")] == [old]


def test_no_attempt_goes_while_a_backup_is_taken() -> None:
    """It may go on with what an older version of ours, or a clock that is wrong, left a month ago."""
    house = ExpiryHouse(HOURS)
    old = f"{abandoned_before(house.now, DEADLINE) - timedelta(days=1):%Y%m%dT%H%M%SZ}-full-0badcafe"
    interrupted(house, old)
    name, length = backup_lease(house.archive), timedelta(minutes=10)
    for number, is_released in ((1, False), (2, True)):
        until = house.now if is_released else house.now + length
        record = LeaseRecord(
            fix.REPOSITORY,
            house.archive,
            name,
            number,
            Holder("db1", 1, "0" * 16),
            taken_at=house.now,
            until_at=until,
            is_released=is_released,
        )
        for store in house.stores.values():
            store.put(lease_key(name, number), sign_record(record.to_payload(), house.house.host))
        assert [each.backup for each in house.abandoned()] == ([old] if is_released else [])


def test_what_is_being_made_of_an_old_chain_is_no_abandoned_attempt() -> None:
    """A consolidation holds no lease, and its id has the time of the old backup that it will stand for."""
    house = ExpiryHouse(HOURS)
    house.now += timedelta(days=40)
    chain_end = house.backups[1]
    made = chain_end.backup.partition("-")[0] + "-full-0badcafe"
    interrupted(house, made)
    assert house.abandoned() == ()
    # Once the backup is gone that it was to stand for, nobody can end it.
    for store in house.stores.values():
        store.delete(manifest_key(house.archive, chain_end.backup))
    assert made in [each.backup for each in house.abandoned()]


def test_only_so_many_attempts_go_at_once() -> None:
    ids = [f"20200101T{n // 3600:02}{n // 60 % 60:02}{n % 60:02}Z-full-0badcafe" for n in range(1500)]
    found = abandoned(ArchiveId(7, 1), ids, set(ids[:2]), fix.at_second(0))
    assert [each.backup for each in found] == ids[2 : ABANDONED_MAX + 2]


def test_one_region_alone_accepts_a_head_from_before_the_expiry() -> None:
    house = ExpiryHouse(HOURS)
    house.expire(WINDOW_H)
    house.now += timedelta(hours=6)
    house.expire(WINDOW_H)
    # The last head counts nine backups; two records named three of them each.
    for region in house.stores:
        check_all_reads(house, region)
        survey, _, _ = house.survey(region)
        assert len(survey.backups) == 3
    heads = compare_heads(house.repository(), house.archive, house.regions())
    assert heads.forks == ()
    # And one from after it, as the daemon writes it next.
    house.head(house.repository().manifests(house.archive).backups)
    newest = next(iter(house.house.store.list_objects("heads/"))).key
    house.stores["us"].put(newest, house.house.store.get(newest))
    check_all_reads(house, "us")


def test_no_more_expire_records_are_read_than_it_takes_to_explain_what_is_missing() -> None:
    """One is signed a day: years of them would be read by every restore."""
    house = ExpiryHouse(HOURS)
    for _ in range(2):
        house.expire(WINDOW_H)
        house.now += timedelta(hours=6)
    house.head(house.repository().manifests(house.archive).backups)
    newest = next(iter(house.house.store.list_objects("heads/"))).key
    watched = FaultyStore(house.stores["us"])
    watched.put(newest, house.house.store.get(newest))
    house.stores["us"] = watched  # type: ignore[assignment]
    _, _, catalogue = house.survey("us")
    assert check(house.repository("us"), catalogue) == ()
    read = {key for operation, key in watched.calls if operation == "get" and key.startswith("expired/")}
    assert read == {expiry_key(house.archive, 2)}


def test_a_manifest_that_came_back_is_no_backup() -> None:
    house = ExpiryHouse(HOURS)
    manifests = {key: house.stores["eu"].get(key) for key in house.keys("eu", "manifests/")}
    house.expire(WINDOW_H)
    for key, body in manifests.items():
        house.stores["ap"].put(key, body)
    check_all_reads(house)
    check_all_reads(house, "ap")
    assert len(house.repository().manifests(house.archive).backups) == 6
    done = house.expire(WINDOW_H)
    assert done.plan.is_empty
    assert len(house.keys("ap", "manifests/")) == 6


def test_what_a_region_refuses_is_tried_by_the_next_run_and_stops_nothing() -> None:
    house = ExpiryHouse(HOURS)
    before = house.keys()
    locked = FaultyStore(house.stores["us"])
    locked.fail(StoreRefused("object lock"), "delete")
    house.stores["us"] = locked  # type: ignore[assignment]
    done = house.expire(WINDOW_H)
    outcomes = {one.region: one for one in done.outcomes}
    assert outcomes["us"].deleted == 0
    assert outcomes["us"].refused > 0
    assert "object lock" in str(outcomes["us"].first_refusal)
    assert outcomes["eu"].refused == outcomes["ap"].refused == 0
    assert house.keys("us") >= before
    check_all_reads(house)
    check_all_reads(house, "us")
    locked.heal()
    house.expire(WINDOW_H)
    assert house.keys("us") == house.keys("eu")
    # What was refused until the next record is signed is carried over into it.
    assert house.keys("ap") == house.keys("eu")


def test_nothing_is_deleted_where_the_record_is_not_at_quorum() -> None:
    house = ExpiryHouse(HOURS)
    before = {region: house.keys(region) for region in house.stores}
    for name in ("us", "ap"):
        faulty = FaultyStore(house.stores[name])
        faulty.fail(StoreUnavailable("down"), "put")
        house.stores[name] = faulty  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable, match="nothing was deleted"):
        house.expire(WINDOW_H)
    assert all(house.keys(region) >= before[region] for region in house.stores)


def test_two_runs_at_once_do_not_both_sign() -> None:
    house = ExpiryHouse(HOURS)
    other = ExpireRecord(
        fix.REPOSITORY, house.archive, 1, None, house.now - timedelta(seconds=1), 60, 1, (), (), ()
    )
    body = house.repository().expiry.sign(other, house.house.root)
    record = ExpireRecord(fix.REPOSITORY, house.archive, 1, None, house.now, 60, 1, (), (), ())
    put_record(other, body, house.regions(), root=house.house.root.public, quorum=2)
    with pytest.raises(AlreadyRunning):
        put_record(
            record,
            house.repository().expiry.sign(record, house.house.root),
            house.regions(),
            root=house.house.root.public,
            quorum=2,
        )


def test_junk_under_the_next_records_name_in_one_region_stops_no_other() -> None:
    house = ExpiryHouse(HOURS)
    key = expiry_key(house.archive, 1)
    before = house.keys("us")
    house.stores["us"].put(key, b"junk")
    done = house.expire(WINDOW_H)
    outcomes = {one.region: one for one in done.outcomes}
    assert outcomes["us"].is_left
    assert outcomes["us"].deleted == 0
    assert house.keys("us") == before | {key}
    assert outcomes["eu"].deleted == outcomes["ap"].deleted > 0
    # A record that another run has signed is another matter, though one region alone has it.
    rival = ExpireRecord(fix.REPOSITORY, house.archive, 2, bytes(32), house.now, 60, 1, (), (), ())
    body = house.repository().expiry.sign(rival, house.house.root)
    house.stores["us"].put(expiry_key(house.archive, 2), body)
    mine = replace(rival, at=house.now + timedelta(seconds=1))
    with pytest.raises(AlreadyRunning):
        put_record(
            mine,
            house.repository().expiry.sign(mine, house.house.root),
            house.regions(),
            root=house.house.root.public,
            quorum=2,
        )


def test_so_many_regions_must_be_sound() -> None:
    assert [regions_needed(*each) for each in ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (5, 3))] == [
        1,
        2,
        2,
        3,
        2,
        3,
        3,
    ]


def test_a_region_that_holds_what_cannot_be_used_is_set_aside_while_enough_are_sound() -> None:
    house = ExpiryHouse(HOURS)
    junk = [RefusedObject(f"manifests/{house.archive}/{name}", "bad") for name in ("one", "two")]
    for each in junk:
        house.stores["ap"].put(each.key, b"junk")
    found = without_doubtful(junk, house.regions(), 2)
    assert [region.name for region in found.sound] == ["eu", "us"]
    assert [one.region for one in found.aside] == ["ap"]
    assert "and 1 more" in found.aside[0].reason
    assert found.reasons == ()
    # In two regions it may be a real one, of which every copy has rotten.
    house.stores["eu"].put(junk[0].key, b"junk")
    found = without_doubtful(junk, house.regions(), 2)
    assert [junk[0].key in reason or junk[1].key in reason for reason in found.reasons] == [True, True]
    # Nobody has it any more, or who had it is silent: that is a doubt like any other.
    gone = [RefusedObject("manifests/none", "bad")]
    assert without_doubtful(gone, house.regions(), 2).reasons == ("manifests/none cannot be used: bad",)
    assert without_doubtful([], house.regions(), 2).reasons == ()


def test_an_index_or_a_piece_of_nobody_in_one_region_sets_that_region_aside_and_freezes_nothing() -> None:
    house = ExpiryHouse(HOURS)
    segment = SegmentName.of(TimelineId(1), 21, SEG)
    piece = PieceKey(house.archive, segment, LSN(21 * SEG), LSN(21 * SEG + 8), 900, "00000001")
    planted = {wal_index_key(house.archive, 900, 900), str(piece)}
    for key in planted:
        house.stores["ap"].put(key, b"junk")
    clean = used_keys(house.house.repository, house.archive, house.expire(WINDOW_H).plan, None)
    house.begin_again()
    for key in planted:
        house.stores["ap"].put(key, b"junk")
    result = house.survey()[1]
    assert {one.key for one in result.refused} == planted
    found = without_doubtful(result.refused, house.regions(), 2)
    assert [one.region for one in found.aside] == ["ap"]
    assert found.reasons == ()
    done = house.expire(WINDOW_H)
    assert used_keys(house.house.repository, house.archive, done.plan, None) == clean
    assert done.record is not None
    assert {one.region for one in done.outcomes if one.deleted} == {"eu", "us", "ap"}


def test_a_region_that_does_not_answer_meanwhile_is_set_aside() -> None:
    house = ExpiryHouse(HOURS)
    faulty = FaultyStore(house.stores["us"])
    faulty.fail(StoreUnavailable("down"), "list")
    regions = [Region("eu", house.stores["eu"]), Region("us", faulty), Region("ap", house.stores["ap"])]
    junk = RefusedObject("manifests/junk", "bad")
    house.stores["eu"].put(junk.key, b"junk")
    found = without_doubtful([junk], regions, 1)
    assert [region.name for region in found.sound] == ["ap"]
    assert {one.region for one in found.aside} == {"eu", "us"}
    assert without_doubtful([junk], regions, 2).reasons


def test_a_region_that_lacks_what_stays_is_set_aside_and_two_freeze_expiry() -> None:
    house = ExpiryHouse(HOURS)
    survey, _, _ = house.survey()
    plan = ExpiryHouse(HOURS).expire(WINDOW_H).plan
    stays = what_stays(survey, plan)
    keys = {house.archive: used_keys(house.repository(), house.archive, plan, None).of_kept}
    pack = house.backups[-1].packs[0].key
    house.stores["us"].delete(pack)
    all_sound = without_doubtful([], house.regions(), 2)
    found = without_lacking(stays, keys, all_sound, 2, wait_s=0)
    assert [region.name for region in found.sound] == ["eu", "ap"]
    assert [(one.region, pack in one.reason) for one in found.aside] == [("us", True)]
    assert found.reasons == ()
    house.stores["ap"].delete(pack)
    found = without_lacking(stays, keys, all_sound, 2, wait_s=0)
    assert len(found.reasons) == 2
    assert all("pitr repair" in reason for reason in found.reasons)


def test_only_the_root_may_say_what_is_gone() -> None:
    """The host's own key, or a stranger's, drops nothing."""
    house = ExpiryHouse(HOURS)
    record = ExpireRecord(fix.REPOSITORY, house.archive, 1, None, house.now, 60, 1, (), (), ())
    with pytest.raises(NotAuthentic, match="only the root"):
        house.repository().expiry.sign(record, house.house.host)
    forged = sign_record(record.to_payload(), Signer.generate(house.house.random))
    for store in house.stores.values():
        store.put(expiry_key(house.archive, 1), forged)
    assert house.repository().expiry.newest(house.archive) is None
    assert len(house.repository().manifests(house.archive).backups) == 9


def test_a_record_reads_as_it_was_written() -> None:
    house = ExpiryHouse(HOURS)
    record = house.expire(WINDOW_H, grace_h=2).record
    assert record is not None
    assert ExpireRecord.from_payload(record.to_payload()) == record
    newest = house.repository().expiry.newest(house.archive)
    assert newest is not None
    assert newest.record == record


def test_a_silent_region_keeps_what_it_has_until_it_has_the_record() -> None:
    house = ExpiryHouse(HOURS)
    done = house.expire(WINDOW_H)
    assert done.record is not None
    late = ExpiryHouse(HOURS)
    down = FaultyStore(late.stores["eu"])
    down.fail(StoreUnavailable("down"), "put")
    body = house.repository().expiry.sign(done.record, house.house.root)
    outcomes = carry_out(done.record, body, [Region("eu", down)], now=house.now, workers=1)
    assert outcomes[0].is_left
    assert outcomes[0].deleted == 0


def test_a_catalogue_from_before_the_expiry_is_no_fault() -> None:
    house = ExpiryHouse(HOURS)
    _, _, catalogue = house.survey()
    house.expire(WINDOW_H)
    house.now += timedelta(hours=6)
    house.expire(WINDOW_H)
    assert check(house.repository(), catalogue) == ()


def test_a_missing_copy_of_what_stays_is_found_and_one_of_what_goes_is_not() -> None:
    house = ExpiryHouse(HOURS)
    survey, _, _ = house.survey()
    done_plan = ExpiryHouse(HOURS).expire(WINDOW_H).plan
    pack = house.backups[-1].packs[0].key
    envelope = f"envelopes/{house.archive}/{house.backups[-1].key_id.hex()}"
    house.stores["us"].delete(pack)
    house.stores["ap"].delete(envelope)
    house.stores["ap"].delete(house.backups[0].packs[0].key)
    keys = {house.archive: used_keys(house.repository(), house.archive, done_plan, None).of_kept}
    found = missing_copies(what_stays(survey, done_plan), keys, house.regions(), wait_s=0)
    assert {(copy.region, copy.key) for copy in found} == {("us", pack), ("ap", envelope)}


def test_signs_of_trouble_freeze_expiry() -> None:
    house = ExpiryHouse(HOURS)
    survey, _, _ = house.survey()
    day = timedelta(days=1)
    assert freezing_signals(survey, now=house.now, backup_age_max=day) == ()
    (old,) = freezing_signals(survey, now=house.now, backup_age_max=timedelta(hours=1))
    assert "older than expected" in old
    alone, _, _ = house.survey("eu")
    (doubt,) = freezing_signals(alone, now=house.now, backup_age_max=day)
    assert "not certain" in doubt
    (future,) = freezing_signals(survey, now=house.at(3), backup_age_max=day)
    assert "from the future" in future
    newest = max(survey.backups, key=lambda each: each.stopped_at)
    notes = BackupSigns(("base/5/README_TO_PAY.txt",), 1, ())
    attacked = [replace(each, signs=notes) if each is newest else each for each in survey.backups]
    (rot,) = freezing_signals(replace(survey, backups=attacked), now=house.now, backup_age_max=day)
    assert "signs of rot" in rot


def test_signs_of_rot_freeze_until_a_full_backup_has_none() -> None:
    """An incremental backup reads what changed: it says nothing of what was found before."""
    house = ExpiryHouse(HOURS)
    survey, _, _ = house.survey()
    full, first, second = house.backups[-3:]
    bad = PageFinding("app.public.patients", "base/5/16384", "main", 7, "checksum")

    def signals(*backups: BackupManifest) -> tuple[str, ...]:
        changed = {each.backup: each for each in backups}
        taken = {each.backup: each for each in survey.backups} | changed
        with_them = replace(survey, backups=tuple(taken.values()))
        return freezing_signals(with_them, now=house.now, backup_age_max=None)

    attacked = replace(full, findings=(bad,) * 20)
    damaged, rotten = signals(attacked)
    assert damaged == f"backup {full.backup} has 20 damaged pages"
    assert rotten == f"backup {full.backup} has signs of rot: see `pitr backups show {full.backup}`"
    notes = BackupSigns(("base/5/README_TO_PAY.txt",), 1, ())
    (between,) = signals(replace(first, signs=notes))
    assert between.startswith(f"backup {first.backup} has signs of rot")
    # One that was made of the chain has read no page; one from the server has read them all.
    made = replace(
        second, backup="20261123T230000Z-full-0badcafe", type="full", parent=None, packs=(), indexes=()
    )
    made = replace(made, stopped_at=second.stopped_at + timedelta(hours=1))
    assert len(signals(attacked, replace(made, stands_for=second.backup))) == 2
    assert signals(attacked, made) == ()


def test_a_hole_inside_the_window_keeps_everything_on_its_way() -> None:
    house = ExpiryHouse(HOURS)
    for store in house.stores.values():
        for info in list(
            store.list_objects(f"wal/{house.archive}/00000001/0000000100000000000000{0x0F:02X}")
        ):
            store.delete(info.key)
    survey, _, _ = house.survey()
    from pitr.retention import plan_expiry

    plan = plan_expiry(survey, window=timedelta(hours=12), minimum_full_backups=1, now=house.now)
    assert plan.is_empty
    assert f"WAL from 0/{0x0F * SEG:X} to 0/{0x10 * SEG:X} is in no region" in plan.holes[0]


def test_keys_of_interrupted_attempts_go_and_stay_with_the_backup_that_resumed_them() -> None:
    house = ExpiryHouse(HOURS)
    plan = ExpiryHouse(HOURS).expire(WINDOW_H).plan
    of_gone, of_kept = b"\x01" * 16, b"\x02" * 16

    def resumed(manifest: BackupManifest, key_id: bytes) -> BackupManifest:
        return replace(manifest, packs=(replace(manifest.packs[0], key_id=key_id),))

    gone, kept = plan.expired[0], plan.kept[-1]
    plan = replace(
        plan,
        expired=(resumed(gone, of_gone), *plan.expired[1:]),
        kept=(*plan.kept[:-1], replace(kept, backup=resumed(kept.backup, of_kept))),
    )
    keys = used_keys(house.repository(), house.archive, plan, None)
    assert {of_gone, gone.key_id} <= keys.of_gone - keys.of_kept
    assert {of_kept, kept.backup.key_id} <= keys.of_kept
