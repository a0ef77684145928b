"""Two pieces of one number, told apart by what lies elsewhere in the archive."""

from __future__ import annotations

import fix_archive as fix
from fix_repository import RepositoryHouse

from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue_rebuild import rebuild
from pitr.foreign_wal import foreign_wal
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
