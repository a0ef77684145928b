"""C16: what a verification says of Kafka's offsets, judged without a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from fix_fences import fence_of

from pitr.errors import PitrError
from pitr.events.broker import BrokerRefused, BrokerUnavailable
from pitr.events.fence_choice import JudgedRow, RowState, judge_last
from pitr.events.fence_code import encode_row
from pitr.events.flows import EventFormat, Flow
from pitr.events.gaps import Gap, GapKind
from pitr.events.history import FIRST_LSN, Branch
from pitr.events.phantoms import PhantomList
from pitr.events.plan import PartitionPlan, ReplayPlan, RestoredPoint, Tally, TopicPlan
from pitr.events.starts import StartReason
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from verifiers.check import Outcome
from verifiers.check_maker import CheckMaker
from verifiers.checks_events import PARTITIONS_MAX, EventsSeen, check_events
from verifiers.scratch_server import ScratchServer

GOOD = PartitionPlan(0, 50, 70, StartReason.FENCE, False, 3, None, Tally(10, 4, 6))
SIGNED = JudgedRow(3, RowState.SIGNED, None)
NO_SERVER = cast(ScratchServer, None)


def _plan(*partitions: PartitionPlan) -> ReplayPlan:
    topic = TopicPlan("orders", "id", Flow.DB_FIRST, EventFormat.HEADERS, False, partitions or (GOOD,))
    return ReplayPlan(
        "cluster",
        RestoredPoint(7, TimelineId(1), LSN(1000), 700),
        (Branch(TimelineId(1), FIRST_LSN, 0),),
        (),
        (),
        (topic,),
        (),
        PhantomList(2, ()),
        PhantomList(0, ()),
    )


def _check(seen: EventsSeen | PitrError) -> tuple[Outcome, str, Any]:
    def look(_server: ScratchServer, _check_time: Callable[[], None]) -> EventsSeen:
        if isinstance(seen, PitrError):
            raise seen
        return seen

    result, fields = check_events(look, NO_SERVER, lambda: None, CheckMaker("test"))
    return result.outcome, result.reason or result.observed, fields


def test_a_signed_fence_and_events_that_can_be_read_pass_and_stand_in_the_report() -> None:
    outcome, said, fields = _check(EventsSeen(_plan(), SIGNED))
    assert outcome is Outcome.PASSED
    assert said.startswith("the last fence is 3, signed; 1 partitions, from their offsets on 10 events: 4 in")
    assert fields == {
        "partitions": [
            {
                "topic": "orders",
                "partition": 0,
                "duplicates": 4,
                "missing": 0,
                "offset_at_target": 50,
                "high_watermark": 70,
                "replayed_from": None,
                "replayed_to": None,
                "result": "replayable: 6 of 10 events to apply",
            }
        ]
    }


def test_what_was_read_from_a_mirror_is_said() -> None:
    outcome, said, _ = _check(EventsSeen(_plan(), SIGNED, mirror="read from the mirror, 1 of 1 places exact"))
    assert outcome is Outcome.PASSED
    assert said.endswith("; read from the mirror, 1 of 1 places exact")


@pytest.mark.parametrize(
    ("seen", "outcome", "said"),
    [
        (EventsSeen(_plan(), replace(SIGNED, state=RowState.UNSIGNED)), Outcome.PASSED, "3, unsigned"),
        (EventsSeen(_plan(), None), Outcome.WARNED, "has no fence"),
        (EventsSeen(_plan(replace(GOOD, is_estimated=True)), SIGNED), Outcome.WARNED, "orders[0] estimated"),
        (
            EventsSeen(_plan(replace(GOOD, gaps=(Gap(GapKind.DELETED, 40, 50),))), SIGNED),
            Outcome.FAILED,
            "orders[0] missing: deleted from 40 to 50",
        ),
        (EventsSeen(_plan(), SIGNED, ("fences 7 cannot be used",)), Outcome.FAILED, "fences 7"),
        (
            EventsSeen(_plan(), replace(SIGNED, state=RowState.TAMPERED, detail="the row differs")),
            Outcome.FAILED,
            "fence 3: the row differs",
        ),
        (BrokerRefused("no right"), Outcome.FAILED, "no right"),
    ],
)
def test_what_is_wrong_decides(seen: EventsSeen | PitrError, outcome: Outcome, said: str) -> None:
    found, text, _ = _check(seen)
    assert found is outcome
    assert said in text


def test_a_cluster_that_is_away_is_not_looked_at_and_says_so() -> None:
    outcome, said, fields = _check(BrokerUnavailable("no answer", detail="10 s"))
    assert (outcome, said, fields) == (Outcome.SKIPPED, "no answer: 10 s", None)


def test_of_many_partitions_a_report_keeps_those_that_are_not_as_they_should_be() -> None:
    many = [replace(GOOD, partition=n) for n in range(PARTITIONS_MAX + 2)]
    many[-1] = replace(many[-1], gaps=(Gap(GapKind.DELETED, 40, 50),))
    _, _, fields = _check(EventsSeen(_plan(*many), SIGNED))
    kept = [one["partition"] for one in fields["partitions"]]
    assert kept == [*range(PARTITIONS_MAX - 1), PARTITIONS_MAX + 1]


def test_the_newest_row_is_judged_by_the_newest_signed_fence() -> None:
    fence = fence_of(5)
    assert judge_last(None, None) is None
    states = {
        "same": (5, encode_row(fence)),
        "edited": (5, encode_row(fence_of(5, before=200))),
        "newer": (6, encode_row(fence_of(6))),
        "older": (4, encode_row(fence_of(4))),
    }
    judged = {name: judge_last(row, fence) for name, row in states.items()}
    assert {name: None if one is None else one.state for name, one in judged.items()} == {
        "same": RowState.SIGNED,
        "edited": RowState.TAMPERED,
        "newer": RowState.UNSIGNED,
        "older": RowState.GONE,
    }
    gone = judge_last(None, fence)
    assert gone is not None
    assert (gone.number, gone.state, gone.fence) == (5, RowState.GONE, fence)
