"""C16: the offsets of Kafka that belong to the restored moment, and whether what it lacks can be replayed.

Looked at while the scratch server is paused at the target.  Nothing is replayed into it: what a replay would
read is read, once, and counted.  Not here: how a cluster and fences are asked; see ``cli.verify_events``.
Reference: docs/verify.md, docs/events.md "Reconciliation".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pitr.errors import NotInitialised
from pitr.events.broker import BrokerUnavailable
from pitr.events.fence_choice import JudgedRow, RowState
from pitr.events.plan import ReplayPlan
from pitr.events.reconcile import Reconciled, Verdict, reconcile
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker, Judgement, clean, failed, passed
from verifiers.scratch_server import ScratchServer

PARTITIONS_MAX: Final = 1_000
"""In a report; what is not as it should be comes before the rest."""
_SHOWN_MAX: Final = 8
_EXPECTED: Final = (
    "the last fence is what was signed, and each event that the database lacks can still be read"
)
_BAD_ROWS: Final = frozenset({RowState.TAMPERED, RowState.UNREADABLE, RowState.GONE})


@dataclass(frozen=True, slots=True)
class EventsSeen:
    """A plan of replay for the restored server; its last fence, None if it has none; what is wrong.

    ``mirror`` says how a mirror was read, None where the cluster itself was.
    """

    plan: ReplayPlan
    last: JudgedRow | None
    faults: Sequence[str] = ()
    mirror: str | None = None


class LookAtEvents(Protocol):
    """Asks a restored server and Kafka."""

    def __call__(self, server: ScratchServer, check_time: Callable[[], None]) -> EventsSeen:
        """Return what is there; ``check_time`` is called while it is read, and may raise.

        Raises BrokerUnavailable, BrokerRefused, NotInitialised, PitrError.
        """


def check_events(
    look: LookAtEvents, server: ScratchServer, check_time: Callable[[], None], maker: CheckMaker
) -> tuple[CheckResult, Mapping[str, object] | None]:
    """C16, and the report's group of it; None where nobody answered.  Where Kafka is away it is SKIPPED."""
    found: list[Mapping[str, object]] = []

    def judge() -> Judgement:
        try:
            seen = look(server, check_time)
        except (BrokerUnavailable, NotInitialised) as away:
            said = f"{away.message}: {away.detail}" if away.detail else away.message
            return Judgement(Outcome.SKIPPED, _EXPECTED, "not looked at", said)
        rows = reconcile(seen.plan, None)
        found.append(kafka_fields(rows))
        return judge_events(seen, rows)

    result = maker.run("C16", "pitr events plan --restored", judge)
    return result, found[0] if found else None


def judge_events(seen: EventsSeen, rows: Sequence[Reconciled]) -> Judgement:
    """Return the judgement of what was seen.  Pure."""
    tally, digest = seen.plan.tally, bytes.fromhex(seen.plan.hash)
    last = seen.last
    observed = (
        f"{_fence_words(last)}; {len(rows)} partitions, from their offsets on {tally.records} events:"
        f" {tally.in_database} in the database, {tally.to_apply} to replay, {tally.lost_branch} lost by a"
        f" failover, {tally.unknown} unknown; {seen.plan.phantoms.count} phantoms"
    )
    if seen.mirror is not None:
        observed = f"{observed}; {seen.mirror}"
    gone = [f"{one.at} {one.result}" for one in rows if one.verdict is Verdict.MISSING]
    wrong = [*seen.faults, *gone]
    if last is not None and last.state in _BAD_ROWS and last.detail and last.detail not in seen.faults:
        wrong.insert(0, f"fence {last.number}: {last.detail}")
    if wrong:
        return failed(_EXPECTED, observed, _some(wrong), digest=digest)
    doubts = [f"{one.at} {one.result}" for one in rows if one.verdict is Verdict.ESTIMATED]
    if last is None:
        doubts.insert(0, "the restored database has no fence, nor is one signed for it")
    if doubts:
        return Judgement(Outcome.WARNED, _EXPECTED, observed, _some(doubts), digest=digest)
    return passed(_EXPECTED, observed, digest=digest)


def kafka_fields(rows: Sequence[Reconciled]) -> Mapping[str, object]:
    """Return the report's group ``kafka``: partitions in order, of more than PARTITIONS_MAX the worst."""
    kept = rows
    if len(rows) > PARTITIONS_MAX:
        worst = sorted(rows, key=lambda one: (one.verdict is Verdict.REPLAYABLE, one.at))[:PARTITIONS_MAX]
        kept = sorted(worst, key=lambda one: one.at)
    return {
        "partitions": [
            {
                "topic": one.at.topic,
                "partition": one.at.partition,
                "duplicates": one.in_database + one.duplicates,
                "missing": one.missing,
                "offset_at_target": one.offset_at_target,
                "high_watermark": one.high_watermark,
                "replayed_from": one.replayed_from,
                "replayed_to": one.replayed_to,
                "result": clean(one.result),
            }
            for one in kept
        ]
    }


def _fence_words(last: JudgedRow | None) -> str:
    if last is None:
        return "no fence"
    return f"the last fence is {last.number}, {last.state}"


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _SHOWN_MAX} more" if len(texts) > _SHOWN_MAX else ""
    return "; ".join(texts[:_SHOWN_MAX]) + more
