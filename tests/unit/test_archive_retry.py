"""Repeating until it succeeds: told once, ended at once, and never against a conflict."""

from __future__ import annotations

import pytest

from pitr.archive_retry import GivenUp, Retry
from pitr.archive_values import ArchiveEvent, ArchiveEventKind
from pitr.spool import SpoolFull
from storage.store import ObjectConflict, StoreRefused, StoreUnavailable


class Script:
    """A call that fails as it is told to."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def retry_and_told() -> tuple[Retry, list[ArchiveEvent]]:
    told: list[ArchiveEvent] = []
    return Retry(told.append, random=bytes, pause_s_max=0.001), told


def test_a_failure_that_lasts_is_told_once_and_so_is_its_end() -> None:
    retry, told = retry_and_told()
    script = Script(StoreUnavailable("down"), StoreRefused("no"), StoreUnavailable("down"))
    assert retry.until_done("putting", script) == "done"
    assert script.calls == 4
    assert [event.kind for event in told] == [
        ArchiveEventKind.STORE_FAILED,
        ArchiveEventKind.STORE_RECOVERED,
    ]
    assert retry.last_error is None


def test_a_full_spool_is_told_as_such() -> None:
    retry, told = retry_and_told()
    retry.until_done("spooling", Script(SpoolFull("no room")))
    assert told[0].kind == ArchiveEventKind.SPOOL_FULL


def test_a_conflict_is_not_repeated() -> None:
    retry, _ = retry_and_told()
    script = Script(ObjectConflict("other bytes"))
    with pytest.raises(ObjectConflict):
        retry.until_done("putting", script)
    assert script.calls == 1


def test_giving_up_ends_what_is_repeated() -> None:
    retry, _ = retry_and_told()

    def fail() -> None:
        retry.give_up()
        raise StoreUnavailable("down")

    with pytest.raises(GivenUp):
        retry.until_done("putting", fail)
    assert retry.last_error == "putting: down"


def test_a_single_try_says_whether_it_worked() -> None:
    retry, _ = retry_and_told()
    assert not retry.once("putting", Script(StoreUnavailable("down")))
    assert retry.once("putting", Script())
