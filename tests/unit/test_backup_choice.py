"""Full or incremental: what the next backup is to be, and why it is not what was asked for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import fix_archive as fix
import pytest

from pitr.backup_choice import (
    CHAIN_LENGTH_MAX,
    BackupKind,
    Choice,
    NewestChain,
    choose,
    followed_by,
    newest_chain,
)
from pitr.catalogue.backup_record import BackupManifest
from pitr.wal.lsn import LSN

SINCE_EVER = LSN(1)
DAY_S = 86_400.0


def backup(number: int, parent: int | None = None) -> BackupManifest:
    """A backup that was begun and complete at second ``number``."""
    at = fix.at_second(number)
    made = fix.backup_of(LSN(number * 1000 + 1), LSN(number * 1000 + 2), stopped_at=at, number=number)
    made = replace(made, started_at=at)
    return made if parent is None else replace(made, type="incr", parent=fix.backup_id(parent))


def chain_of(length: int) -> list[BackupManifest]:
    return [backup(1), *(backup(number + 1, number) for number in range(1, length + 1))]


def ask(
    kind: BackupKind,
    chain: NewestChain | None,
    *,
    after_s: float = 60,
    full_every_s: float | None = DAY_S,
    has_increments: bool = True,
    wal_since: LSN | None = SINCE_EVER,
) -> Choice:
    return choose(
        kind,
        chain,
        now=fix.at_second(1) + timedelta(seconds=after_s),
        full_every_s=full_every_s,
        has_increments=has_increments,
        wal_since=wal_since,
    )


def test_nothing_is_built_on_a_backup_from_before_a_hole_in_the_archived_wal() -> None:
    chain = newest_chain(chain_of(1))
    assert chain is not None
    start = chain.newest.start_lsn
    assert ask("auto", chain, wal_since=start).parent == chain.newest
    for since in (LSN(start.offset + 1), None):
        found = ask("auto", chain, wal_since=since)
        assert found.parent is None
        assert "is missing in the archive" in str(found.reason)


def test_without_a_backup_the_first_one_is_full() -> None:
    assert newest_chain([]) is None
    for kind in ("auto", "incr"):
        assert ask(kind, None) == Choice(None, "there is no backup to build on")
    assert ask("full", None) == Choice(None)


def test_a_full_backup_is_full_whatever_there_is() -> None:
    assert ask("full", newest_chain(chain_of(2))) == Choice(None)


def test_an_incremental_one_is_built_on_the_newest() -> None:
    known = chain_of(2)
    chain = newest_chain(reversed(known))
    assert chain == NewestChain(known[2], 2, known[0].started_at)
    assert ask("incr", chain) == ask("auto", chain) == Choice(known[2])


@pytest.mark.parametrize(("after_s", "is_full"), [(DAY_S - 1, False), (DAY_S, True), (3 * DAY_S, True)])
def test_auto_is_full_when_one_is_due_and_that_needs_no_reason(after_s: float, is_full: bool) -> None:
    known = chain_of(2)
    chain = newest_chain(known)
    assert ask("auto", chain, after_s=after_s) == Choice(None if is_full else known[2])
    # Somebody who asks for an incremental one gets it.
    assert ask("incr", chain, after_s=after_s) == Choice(known[2])


def test_auto_never_comes_due_without_a_timetable() -> None:
    known = chain_of(1)
    assert ask("auto", newest_chain(known), after_s=9e6, full_every_s=None) == Choice(known[1])


def test_auto_is_full_where_increments_are_off() -> None:
    known = chain_of(1)
    assert ask("auto", newest_chain(known), has_increments=False) == Choice(None)
    assert ask("incr", newest_chain(known), has_increments=False) == Choice(known[1])


@pytest.mark.parametrize("kind", ["auto", "incr"])
def test_a_chain_of_thirty_is_not_made_longer(kind: BackupKind) -> None:
    assert CHAIN_LENGTH_MAX == 30
    known = chain_of(30)
    assert ask(kind, newest_chain(known[:-1])) == Choice(known[29])
    refused = ask(kind, newest_chain(known))
    assert refused.parent is None
    assert refused.reason is not None
    assert "30 incremental backups" in refused.reason


@pytest.mark.parametrize("lost", [0, 1])
def test_nothing_is_built_on_a_chain_of_which_a_part_is_missing(lost: int) -> None:
    known = chain_of(2)
    chain = newest_chain(each for each in known if each is not known[lost])
    refused = ask("auto", chain)
    assert refused.parent is None
    assert refused.reason == f"backup {known[lost].backup}, which {known[2].backup} is built on, is missing"
    # A full one begins anew.
    full = backup(9)
    assert ask("incr", followed_by(chain, full)) == Choice(full)


def test_a_chain_in_a_circle_ends_in_a_full_backup() -> None:
    circle = [backup(1, 2), backup(2, 1)]
    chain = newest_chain(circle)
    assert chain is not None
    assert chain.newest == circle[1]
    assert ask("incr", replace(chain, length=CHAIN_LENGTH_MAX)).parent is None


def test_the_chain_grows_with_each_backup_and_begins_anew_with_a_full_one() -> None:
    chain: NewestChain | None = None
    known = chain_of(3)
    for number, manifest in enumerate(known):
        chain = followed_by(chain, manifest)
        assert chain == newest_chain(known[: number + 1])
    assert followed_by(chain, backup(9)) == NewestChain(backup(9), 0, fix.at_second(9))
