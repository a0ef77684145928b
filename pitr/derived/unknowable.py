"""What nobody can know of Redis after a restore, said with the figures of this one.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from pitr.derived.policy import Policy, Treatment
from pitr.derived.snapshot_record import SnapshotRecord
from pitr.recovery import instant_text


def unknowable(
    treatments: Sequence[Treatment],
    found: Mapping[str, int],
    *,
    undeclared: int,
    clients: int,
    at: datetime | None,
    snapshot: SnapshotRecord | None,
) -> tuple[str, ...]:
    """Return sentences for people.

    ``found``: keys by prefix; ``at``: the moment that the database was restored to, if it was given;
    ``snapshot``: the newest one that was whole by then.
    """
    lines = ["Redis keeps no time of writes: which keys are newer than the restored moment cannot be told"]
    for one in treatments:
        prefix, count = one.namespace.prefix, found.get(one.namespace.prefix, 0)
        if one.policy is Policy.KEEP and count:
            lines.append(
                f"{prefix!r}: about {count} keys stay as they are; whether they agree with the database"
                " is unknown"
            )
        elif one.policy is Policy.RESTORE:
            lines.append(_between(prefix, count, at, snapshot))
        elif one.policy is Policy.EPOCH:
            lines.append(
                f"{prefix!r}: whether every application reads {one.namespace.counter}"
                " cannot be seen from here"
            )
    if undeclared:
        lines.append(f"about {undeclared} keys belong to no declared namespace, and stay as they are")
    if clients:
        lines.append(
            f"up to {clients} other clients are connected to a master: what they write meanwhile"
            " is not covered"
        )
    return tuple(lines)


def _between(prefix: str, count: int, at: datetime | None, snapshot: SnapshotRecord | None) -> str:
    """Say what lies between a snapshot and the restored moment."""
    moment = "the restored moment" if at is None else instant_text(at)
    if snapshot is None:
        by = "" if at is None else f" that was whole at {moment}"
        return f"{prefix!r}: there is no snapshot{by}; its {count} keys stay, as they are now"
    began, ended = instant_text(snapshot.began_at), instant_text(snapshot.ended_at)
    return (
        f"{prefix!r}: {snapshot.snapshot} holds it as it was between {began} and {ended};"
        f" what was added or taken from then to {moment} is unknown; its {count} keys of now stay until then"
    )
