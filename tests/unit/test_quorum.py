"""How many regions must answer, against every choice of regions."""

from __future__ import annotations

from itertools import combinations

import pytest

from pitr.errors import MalformedValue
from pitr.quorum import Answers, WriteQuorum


@pytest.mark.parametrize("regions", [1, 2, 3, 4, 5])
def test_so_many_answers_see_whatever_was_acknowledged_and_one_fewer_may_not(regions: int) -> None:
    places = range(regions)
    for acknowledged_by in range(1, regions + 1):
        quorum = WriteQuorum(regions, acknowledged_by)
        for count in range(regions + 1):
            always_met = all(
                set(asked) & set(holders)
                for asked in combinations(places, count)
                for holders in combinations(places, acknowledged_by)
            )
            assert Answers(count, quorum).are_enough(None) is always_met


def test_where_nobody_says_how_many_regions_there_are_no_answers_are_enough() -> None:
    assert not Answers(16).are_enough(None)
    assert Answers(1).describe(None) == "1 region was read, and nobody says of how many"


def test_the_signed_quorum_serves_a_reader_without_a_configuration() -> None:
    assert Answers(2).are_enough(WriteQuorum(3, 2))
    assert not Answers(1).are_enough(WriteQuorum(3, 2))
    assert Answers(1).describe(WriteQuorum(3, 2)) == "1 of 3 regions answered, and it takes 2 to be sure"


def test_of_an_old_configuration_and_a_newer_head_the_more_demanding_counts() -> None:
    old, grown = WriteQuorum(3, 2), WriteQuorum(5, 3)
    assert not Answers(2, old).are_enough(grown)
    assert not Answers(2, grown).are_enough(old)
    assert Answers(3, old).are_enough(grown)


@pytest.mark.parametrize(("regions", "acknowledged_by"), [(3, 0), (3, 4), (17, 1), (0, 0)])
def test_what_is_no_quorum_is_refused(regions: int, acknowledged_by: int) -> None:
    with pytest.raises(MalformedValue):
        WriteQuorum(regions, acknowledged_by)
