"""Signals of rot and ransomware, and what must not raise one."""

from __future__ import annotations

from dataclasses import replace

from fix_rot import PATH, backup, sign

from pitr.catalogue.backup_record import BackupManifest, PageFinding
from pitr.catalogue.backup_signs import BackupSigns
from pitr.rot_signals import Level, is_alarming, rot_signals


def test_a_cluster_that_goes_on_as_before_raises_nothing() -> None:
    days = [backup(number, sign(ratio=4.0 + number / 10)) for number in range(1, 6)]
    assert rot_signals(days[-1], days) == ()
    assert rot_signals(days[0], days) == ()


def test_a_relation_that_no_longer_compresses_is_seen() -> None:
    (found,) = rot_signals(backup(3, sign(ratio=1.1)), [backup(1, sign()), backup(2, sign())])
    assert (found.level, found.subject) == (Level.HIGH, PATH)
    assert "1.10-fold, and did 4.00-fold" in found.message


def test_what_never_compressed_is_no_signal() -> None:
    pictures = sign(ratio=1.02)
    assert rot_signals(backup(2, pictures), [backup(1, pictures)]) == ()


def test_a_small_part_that_does_not_compress_is_no_signal() -> None:
    before = [backup(1, sign())]
    assert rot_signals(backup(2, sign(copied_mib=10, ratio=1.0), is_incremental=True), before) == ()


def test_far_more_change_than_usual_is_seen_and_two_of_them_alarm() -> None:
    usual = [
        backup(n, sign(copied_mib=2), sign(copied_mib=2, path="b"), is_incremental=True) for n in (1, 2, 3)
    ]
    storm = backup(4, sign(copied_mib=60), sign(copied_mib=60, path="b"), is_incremental=True)
    signals = rot_signals(storm, usual)
    assert [found.level for found in signals] == [Level.HIGH, Level.HIGH]
    assert is_alarming(signals)
    assert not is_alarming(signals[:1])


def test_files_that_do_not_belong_and_many_bad_pages_alarm_at_once() -> None:
    (alien,) = rot_signals(backup(1, aliens=3), [])
    assert (alien.level, alien.subject) == (Level.CRITICAL, "base/5/README.txt")
    assert is_alarming([alien])
    pages = tuple(PageFinding("app.public.t", PATH, "main", block, "checksum") for block in range(9))
    (bad,) = rot_signals(replace(backup(1), findings=pages), [])
    assert (bad.level, bad.subject) == (Level.CRITICAL, "app.public.t")


def test_signs_round_trip_in_the_manifest_and_one_of_before_has_none() -> None:
    made = backup(1, sign(), aliens=2)
    payload = dict(made.to_payload())
    assert BackupManifest.from_payload(payload) == made
    del payload["signs"]
    assert BackupManifest.from_payload(payload).signs == BackupSigns()
