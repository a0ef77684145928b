"""The newest object that holds: bad ones are passed over, up to a bound, and an attack is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pitr.errors import NotAuthentic
from pitr.verified import BAD_MAX, newest_that_holds


def read(key: str) -> str:
    if key.startswith("bad"):
        raise NotAuthentic("its signature is wrong")
    return key


def test_bad_ones_are_passed_over_up_to_a_bound() -> None:
    bad = [f"bad{number}" for number in range(BAD_MAX)]
    assert newest_that_holds([*bad[1:], "good", "older"], read, "heads") == "good"
    assert newest_that_holds([], read, "heads") is None
    assert newest_that_holds(bad[1:], read, "heads") is None
    with pytest.raises(NotAuthentic, match=f"newest {BAD_MAX} heads are all bad"):
        newest_that_holds([*bad, "good"], read, "heads")


def test_no_more_than_the_bound_are_looked_at() -> None:
    looked: list[str] = []

    def keys() -> Iterator[str]:
        for number in range(10 * BAD_MAX):
            looked.append(str(number))
            yield f"bad{number}"

    with pytest.raises(NotAuthentic):
        newest_that_holds(keys(), read, "heads")
    assert len(looked) == BAD_MAX
