"""Two pieces of one number, told apart by what lies elsewhere in the archive."""

from __future__ import annotations

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse

from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue_rebuild import rebuild
from pitr.catalogue_survey import survey_archive
from pitr.foreign_wal import foreign_wal
from pitr.planner import plan_restore
from pitr.quorum import Answers, WriteQuorum
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import TargetNotRestorable
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from verifiers.base import Severity
from verifiers.chain import check_chain

SEG = fix.SEGMENT_BYTES
FIRST = LSN(SEG)
KIB = 1024


def test_a_piece_of_the_next_timeline_tells_which_one_of_the_last_pieces_is_right() -> None:
    house = RepositoryHouse(MemoryStore())
    house.piece(FIRST, FIRST + KIB)
    sequence, digest = house.sequence, house.digest
    left = house.piece(FIRST + KIB, FIRST + 3 * KIB)
    # The spool was lost: the host goes on from what it found.
    house.sequence, house.digest = sequence, digest
    right = house.piece(FIRST + KIB, FIRST + 2 * KIB)
    house.history(2, f"1\t{FIRST + 2 * KIB}\tno recovery target specified\n".encode())
    house.piece(FIRST, FIRST + 4 * KIB, timeline=2)
    house.head()
    on_one = list(house.repository.wal_objects(house.archive, TimelineId(1)))
    assert {left, right} <= set(on_one)
    assert foreign_wal(house.repository, house.archive, on_one) == {left}


def test_two_pieces_of_one_number_do_not_hide_the_chain_from_a_check() -> None:
    house = RepositoryHouse(MemoryStore())
    for number in range(3):
        house.piece(FIRST + number * KIB, FIRST + (number + 1) * KIB)
    sequence, digest = house.sequence, house.digest
    house.piece(FIRST + 3 * KIB, FIRST + 5 * KIB)
    house.sequence, house.digest = sequence, digest
    for number in range(3, 9):
        house.piece(FIRST + number * KIB, FIRST + (number + 1) * KIB)
    findings = check_chain(house.repository, house.archive)
    wrong = [one for one in findings if one.severity is Severity.FAIL and one.id.startswith("chain.link")]
    assert wrong == []
    assert any(one.id in ("chain.fork", "chain.spare") for one in findings)
    catalogue = Catalogue(":memory:")
    rebuild(house.repository, catalogue)
    (interval,) = catalogue.coverage(house.archive)
    assert interval.end == FIRST + 9 * KIB


def test_the_end_is_restorable_though_the_host_died_with_several_puts_under_way() -> None:
    """The last ones arrived, and one before them did not: nobody was told of any of them."""
    house = RepositoryHouse(MemoryStore())
    for number in range(8):
        house.piece(FIRST + number * KIB, FIRST + (number + 1) * KIB)
    house.backup(fix.backup_of(FIRST + 40, FIRST + KIB, stopped_at=fix.at_second(5), number=1))
    house.head()
    last, never, *_ = [house.piece(FIRST + n * KIB, FIRST + (n + 1) * KIB) for n in range(8, 12)]
    house.store.delete(str(never))
    catalogue = Catalogue(":memory:")
    result = rebuild(house.repository, catalogue)
    assert result.refused == ()
    survey = survey_archive(catalogue, house.archive, Answers(3, WriteQuorum(3, 2)))
    plan = plan_restore(RecoveryTarget("latest"), survey)
    assert plan.wal_end == last.end
    # The fixture's head names no piece's digest.
    assert _failed(house) <= {"chain.head"}
    # One that the head has signed is a hole wherever it is.
    house.head()
    rebuild(house.repository, catalogue)
    survey = survey_archive(catalogue, house.archive, Answers(3, WriteQuorum(3, 2)))
    with pytest.raises(TargetNotRestorable):
        plan_restore(RecoveryTarget("latest"), survey)
    assert "chain.gap" in _failed(house)


def test_a_whole_segment_tells_that_its_pieces_were_acknowledged_though_one_is_lost_everywhere() -> None:
    house = RepositoryHouse(MemoryStore())
    half = fix.SEGMENT_BYTES // 2
    house.piece(FIRST, FIRST + half)
    house.backup(fix.backup_of(FIRST + 40, FIRST + KIB, stopped_at=fix.at_second(5), number=1))
    house.head()
    lost = house.piece(FIRST + half, FIRST + 2 * half)
    house.segment(FIRST, 1, 2)
    house.piece(FIRST + 2 * half, FIRST + 2 * half + KIB)
    last = house.piece(FIRST + 2 * half + KIB, FIRST + 2 * half + 2 * KIB)
    house.store.delete(str(lost))
    catalogue = Catalogue(":memory:")
    rebuild(house.repository, catalogue)
    survey = survey_archive(catalogue, house.archive, Answers(3, WriteQuorum(3, 2)))
    assert plan_restore(RecoveryTarget("latest"), survey).wal_end == last.end
    assert _failed(house) <= {"chain.head"}


def _failed(house: RepositoryHouse) -> set[str]:
    findings = check_chain(house.repository, house.archive)
    return {one.id for one in findings if one.severity is Severity.FAIL}
