"""The replay certificate: a JSON statement of a restore that was followed by a replay, and how far both came.

It is written at each step, so what an interrupted or refused run has reached can be read in it.  It lies
beside the recovery certificate, which it names.  Pure: who writes it is ``cli.restore_replay``.

Not here: a signature, as of the recovery certificate.  Reference: docs/events.md, "Restore and replay".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pitr.events.plan import ReplayPlan, plan_fields
from pitr.events.reconcile import Reconciled

FORMAT = "pitr-replay-certificate/1"


class ReplayState(StrEnum):
    """What was reached."""

    RESTORING = "restoring"
    """Nothing is promised: the cluster may not be there, or not be promoted."""
    PLANNED = "planned"
    """The plan was made against the restored server, before anybody could write to it."""
    REPLAYING = "replaying"
    """The cluster is promoted, apart from its clients; events go into it."""
    UNRECONCILED = "not reconciled"
    """Events are missing, or were counted otherwise than planned: not to be opened."""
    RECONCILED = "reconciled"
    """Each event of the plan is accounted for: the cluster may be opened."""


@dataclass(frozen=True, slots=True)
class ReplayCertificate:
    """One restore with its replay.  ``target`` is as it was typed."""

    target: str
    into: str
    state: ReplayState
    accepted_gaps: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    plan: ReplayPlan | None = None
    plan_file: str | None = None
    recovery_file: str | None = None
    recovery_sha256: str | None = None
    handlers_sha256: str | None = None
    replay_id: str | None = None
    rows: tuple[Reconciled, ...] = ()

    def at(self, state: ReplayState) -> ReplayCertificate:
        """Return the same, one step further."""
        return replace(self, state=state)


def certificate_fields(made: ReplayCertificate) -> Mapping[str, object]:
    """Return the certificate as JSON's values."""
    plan = made.plan
    said = None if plan is None else plan_fields(plan)
    return {
        "format": FORMAT,
        "state": str(made.state),
        "target": made.target,
        "into": made.into,
        "recovery_certificate": {"file": made.recovery_file, "sha256": made.recovery_sha256},
        "restored": None if said is None else said["restored"],
        "cluster_id": None if plan is None else plan.cluster_id,
        "plan": None if plan is None else {"file": made.plan_file, "hash": plan.hash},
        "accepted_gaps": list(made.accepted_gaps),
        "faults": list(made.faults),
        "phantoms": None if plan is None else plan.phantoms.count,
        "lost_by_failovers": None if plan is None else plan.lost.count,
        "replay_id": made.replay_id,
        "handlers_sha256": made.handlers_sha256,
        "totals": _totals(made.rows),
        "partitions": [reconciled_fields(one) for one in made.rows],
    }


def reconciled_fields(one: Reconciled) -> dict[str, object]:
    """Return a partition as JSON's values."""
    return {
        "topic": one.at.topic,
        "partition": one.at.partition,
        "offset_at_target": one.offset_at_target,
        "high_watermark": one.high_watermark,
        "replayed_from": one.replayed_from,
        "replayed_to": one.replayed_to,
        "in_database": one.in_database,
        "applied": one.applied,
        "duplicates": one.duplicates,
        "held": one.held,
        "passed_over": one.passed_over,
        "missing": one.missing,
        "result": one.result,
    }


def _totals(rows: Sequence[Reconciled]) -> dict[str, int]:
    return {
        "in_database": sum(one.in_database for one in rows),
        "applied": sum(one.applied for one in rows),
        "duplicates": sum(one.duplicates for one in rows),
        "held": sum(one.held for one in rows),
        "passed_over": sum(one.passed_over for one in rows),
        "missing": sum(one.missing for one in rows),
    }
