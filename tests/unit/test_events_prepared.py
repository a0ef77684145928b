"""Events of transactions that were prepared where recovery stopped."""

from __future__ import annotations

import pytest

from pitr.events.classify import EventClass, Lineage, classify
from pitr.events.event_facts import EventFacts
from pitr.events.history import FIRST_LSN, Branch, XactStatus, status_of
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

ONE = TimelineId(1)
END = LSN(5000)
LINEAGE = Lineage((Branch(ONE, FIRST_LSN, 0),), END, 700)


@pytest.mark.parametrize(
    ("is_promoted", "expected"),
    [(False, EventClass.NOT_IN_DATABASE), (True, EventClass.UNKNOWN)],
)
@pytest.mark.parametrize("lsn", [LSN(4000), None])
def test_what_still_runs_in_a_promoted_server_was_prepared_and_may_yet_be_committed(
    lsn: LSN | None, is_promoted: bool, expected: EventClass
) -> None:
    statuses = {600: status_of("in progress", is_promoted=is_promoted)}
    assert classify(EventFacts(xid=600, timeline=ONE, lsn=lsn), LINEAGE, statuses) is expected
    # Also where its position says that it was committed after the end: a second commit here doubles it.
    facts = EventFacts(xid=600, timeline=ONE, commit_lsn=LSN(6000))
    assert classify(facts, LINEAGE, statuses) is expected


def test_what_was_prepared_and_is_decided_since_is_where_the_decision_put_it() -> None:
    facts = EventFacts(xid=600, timeline=ONE)
    committed = {600: status_of("committed", is_promoted=True)}
    assert classify(facts, LINEAGE, committed) is EventClass.IN_DATABASE
    aborted = {600: status_of("aborted", is_promoted=True)}
    assert classify(facts, LINEAGE, aborted) is EventClass.NOT_IN_DATABASE
    assert status_of(None, is_promoted=True) is XactStatus.TOO_OLD
    # Its commit was after the end: what the number says now and what the position says are two things.
    late = EventFacts(xid=600, timeline=ONE, commit_lsn=LSN(6000))
    assert classify(late, LINEAGE, committed) is EventClass.UNKNOWN
