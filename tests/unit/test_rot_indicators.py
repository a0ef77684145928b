"""The report's indicators of ransomware: figures beside their usual ones, and the last clean point."""

from __future__ import annotations

from fix_rot import PATH, backup, sign

from pitr.rot_signals import rot_signals
from verifiers.report_shape import REPORT, check_shape
from verifiers.rot_indicators import indicators, last_clean_point, ransomware_fields


def test_a_first_backup_has_every_figure_and_no_usual_one() -> None:
    first = backup(1, sign())
    found = indicators(first, [first])
    assert len(found) == 4
    assert all(one.value and one.threshold for one in found)
    assert {one.baseline for one in found} == {"no backup before this one tells"}
    assert last_clean_point(first, [first]) is not None


def test_a_relation_that_was_encrypted_shows_its_fall_and_the_backup_before_it() -> None:
    clean, encrypted = backup(2, sign(ratio=4.0)), backup(3, sign(ratio=1.1))
    days = [backup(1, sign(ratio=3.9)), clean, encrypted]
    compression = indicators(encrypted, days)[2]
    assert compression.value == f"1.10-fold in {PATH}, 3.64 times worse"
    assert compression.baseline == "4.00-fold"
    assert str(last_clean_point(encrypted, days)).startswith(f"backup {clean.backup}, ")
    assert str(last_clean_point(clean, days)).startswith(f"backup {clean.backup}, ")


def test_alien_files_are_counted_and_no_point_may_be_clean() -> None:
    days = [backup(1, aliens=2), backup(2, aliens=3)]
    alien = indicators(days[1], days)[1]
    assert (alien.value, alien.baseline) == ("3", "2 in 1 backups before")
    assert last_clean_point(days[1], days) is None


def test_a_storm_of_change_is_shown_beside_the_usual_part() -> None:
    usual = [backup(n, sign(copied_mib=2), is_incremental=True) for n in (1, 2, 3)]
    storm = backup(4, sign(copied_mib=60), sign(copied_mib=2, path="b"), is_incremental=True)
    change = indicators(storm, usual)[3]
    assert (change.value, change.baseline) == (f"60.0% of {PATH}", "2.0%")
    assert rot_signals(storm, usual)


def test_the_group_has_the_published_shape() -> None:
    for one in (backup(2, sign(), aliens=1), backup(3, sign(copied_mib=2), is_incremental=True)):
        shape = REPORT["ransomware"][1]
        assert isinstance(shape, dict)
        check_shape(ransomware_fields(one, [backup(1, sign()), one]), shape)
