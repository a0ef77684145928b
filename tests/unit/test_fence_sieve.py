"""The sieve of fences: a few of many, and never another start than all of them would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from pitr.events.classify import Lineage
from pitr.events.fence import Fence, Mark, PartitionFence, TopicFence
from pitr.events.fence_sieve import Sieve
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.forks import branches_of, narrow
from pitr.events.history import FIRST_LSN, Branch, XactStatus
from pitr.events.starts import Known, PartitionNow, start_of, view_fences
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch

SYSTEM = 7_300_000_000_000_000_001
AT = datetime(2026, 5, 4, 12, tzinfo=UTC)
ONE, TWO = TimelineId(1), TimelineId(2)
FORK = 600
LINEAGE = Lineage((Branch(ONE, FIRST_LSN, 0), Branch(TWO, LSN(FORK * 10), FORK)), LSN(9_000), 900)
DECLARED = [
    FlowDeclaration("outbox", Flow.DB_FIRST),
    FlowDeclaration("audit", Flow.EVENT_FIRST, max_lag_s=1000),
]


def _fence(number: int, unknown: str | None = None) -> Fence:
    timeline = ONE if number < FORK else TWO
    at = AT + timedelta(seconds=10 * number)
    mark = Mark(number, SYSTEM, timeline, LSN(10 * number), number, 3, number, at)
    topics = tuple(
        TopicFence(one.topic, f"id-{one.topic}", (PartitionFence(0, 0, number, number),)) for one in DECLARED
    )
    return Fence(mark, at, None, "c", () if unknown else topics, (), unknown)


def _committed(xids: Sequence[int]) -> Mapping[int, XactStatus]:
    return dict.fromkeys(xids, XactStatus.COMMITTED)


@pytest.mark.parametrize("look_back", [timedelta(minutes=10), timedelta(hours=2)])
def test_a_sieve_gives_the_starts_of_all_fences_and_keeps_few(look_back: timedelta) -> None:
    fences = [_fence(n, "away" if 880 < n < 890 else None) for n in range(1, 1000)]
    read = 0

    def newest_first() -> Iterator[Fence]:
        nonlocal read
        for fence in reversed(fences):
            read += 1
            yield fence

    found = Sieve(DECLARED, LINEAGE, SYSTEM, _committed, look_back).sift(newest_first())
    whole = view_fences(fences, LINEAGE, _committed(range(3, 900)), SYSTEM)
    assert len(found.view.inside) <= 6
    for declared in DECLARED:
        now = PartitionNow(0, f"id-{declared.topic}", "c")
        starts = [
            start_of(declared, now, Known(view, LINEAGE, look_back=look_back)) for view in (found.view, whole)
        ]
        assert (starts[0].offset, starts[0].reason) == (starts[1].offset, starts[1].reason)
    assert found.view.last == whole.last
    # A longer look-back reads on to before the failover; a short one stops at what the lag needs.
    assert (read > 400) == (look_back > timedelta(hours=1))


def test_forks_are_between_what_marks_before_and_behind_them_say() -> None:
    branches = branches_of(TimelineHistory(TWO, (TimelineSwitch(ONE, LSN(FORK * 10)),)))
    assert (branches[1].fork_xid, branches[0].fork_xid, branches[0].fork_xid_max) == (0, 0, None)
    marks = [_fence(number).mark for number in (400, 598, 603, 700)]
    found = narrow(branches, marks)[1]
    assert (found.fork_xid, found.fork_xid_max, found.own_from) == (598, 603, 603)
    # One of the old timeline from beyond the fork was taken on what was lost.
    lost = Mark(9, SYSTEM, ONE, LSN(FORK * 10 + 5), 650, 3, 650, AT)
    assert narrow(branches, [*marks, lost])[1] == found
