"""In which backup a bad page was last clean."""

from __future__ import annotations

from dataclasses import replace

import fix_archive as fix

from pitr.catalogue.backup_record import FINDINGS_MAX, BackupManifest, PageFinding
from pitr.page_history import page_histories, still_bad
from pitr.wal.lsn import LSN

BAD = PageFinding("app.public.patients", "base/5/16384", "main", 7, "checksum")


def backup(number: int, *, bad: bool = False, parent: BackupManifest | None = None) -> BackupManifest:
    at = number * fix.SEGMENT_BYTES
    made = fix.backup_of(LSN(at), LSN(at + 1000), stopped_at=fix.at_second(number), number=number)
    if parent is not None:
        made = replace(made, type="incr", parent=parent.backup)
    return replace(made, findings=(BAD,) if bad else ())


def test_the_newest_full_backup_before_it_went_bad_is_named() -> None:
    chain = [backup(1), backup(2), backup(3, bad=True), backup(4, bad=True)]
    (history,) = page_histories(chain[3], chain)
    assert history.finding == BAD
    assert history.last_clean == chain[1]
    assert history.first_bad == chain[2]


def test_an_incremental_backup_without_the_finding_has_not_read_the_page() -> None:
    first = backup(1)
    second = backup(2, parent=first)
    (history,) = page_histories(backup(3, bad=True), [first, second])
    assert history.last_clean == first


def test_a_backup_made_of_a_chain_or_without_checksums_is_no_witness() -> None:
    made = replace(backup(1), stands_for=backup(9).backup)
    unsure = replace(backup(2), page_checksums=False)
    (history,) = page_histories(backup(3, bad=True), [made, unsure])
    assert history.last_clean is None


def test_a_page_that_was_mended_and_went_bad_again_is_clean_in_between() -> None:
    chain = [backup(1, bad=True), backup(2), backup(3, bad=True)]
    (history,) = page_histories(chain[2], chain)
    assert (history.last_clean, history.first_bad) == (chain[1], chain[2])


def test_a_page_stays_bad_until_a_full_backup_has_read_it_clean() -> None:
    found, other = backup(1, bad=True), replace(BAD, block=8)
    silent = backup(2, parent=found)
    worse = replace(backup(3, parent=silent), findings=(other,))
    assert still_bad([worse, silent, found]) == (BAD, other)
    assert still_bad([worse], still_bad([silent], still_bad([found]))) == (BAD, other)
    made = replace(backup(4), stands_for=worse.backup)
    unsure = replace(backup(4), page_checksums=False)
    assert still_bad([made], [BAD]) == still_bad([unsure], [BAD]) == (BAD,)
    assert still_bad([found, worse, backup(5)]) == ()
    assert still_bad([found, backup(5, bad=True)]) == (BAD,)


def test_a_backup_that_could_not_name_all_its_bad_pages_is_no_witness_of_the_others() -> None:
    other = replace(BAD, block=8)
    full = replace(backup(2), findings=(other,) * FINDINGS_MAX)
    (history,) = page_histories(backup(3, bad=True), [backup(1), full])
    assert history.last_clean == backup(1)
    nearly = replace(full, findings=full.findings[1:])
    (history,) = page_histories(backup(3, bad=True), [backup(1), nearly])
    assert history.last_clean == nearly
