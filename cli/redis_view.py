"""What a walk over Redis, and its snapshots, look like to people and to programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.output import Output, format_bytes
from pitr.derived.policy import Policy, Treatment
from pitr.recovery import instant_text

if TYPE_CHECKING:
    from pitr.derived.snapshot_record import SnapshotRecord
    from pitr.derived.walk import SiteWalk

_ACTIONS = {
    Policy.DROP: "drop",
    Policy.KEEP: "keep",
    Policy.RESTORE: "restore by hand",
    Policy.EPOCH: "new epoch",
}


def show_walk(
    output: Output,
    name: str,
    walk: SiteWalk,
    treatments: Sequence[Treatment],
    unknown: Sequence[str],
    *,
    acted: bool,
) -> None:
    """Write one row for each namespace, what could not be reached, and what nobody can know."""
    masters = walk.look.topology.masters
    kind = f"a cluster of {len(masters)} masters" if walk.look.topology.is_cluster else "one server"
    output.line(f"Redis {name}: {kind}, about {sum(one.keys for one in walk.masters)} keys")
    totals = walk.totals
    rows = []
    for one in treatments:
        count = totals.get(one.namespace.prefix)
        figures = [0, 0, 0, 0] if count is None else [count.found, count.stale, count.removed, count.left]
        shown = [str(figure) for figure in (figures if acted else figures[:2])]
        rows.append([one.namespace.prefix, _ACTIONS[one.policy], *shown, one.why or ""])
    for word, keys in sorted(walk.undeclared.items(), key=lambda each: -each[1]):
        rows.append([f"undeclared: {word}", "keep", str(keys), *(["0"] * (3 if acted else 1)), ""])
    columns = ["keys", "to go", "removed", "left"] if acted else ["keys", "to go"]
    output.table(["namespace", "what", *columns, "why"], rows, empty="no namespace is declared")
    if acted:
        for prefix, epoch in walk.epochs.items():
            output.line(f"the epoch of {prefix!r} is {epoch}")
    for text in unknown:
        output.line(f"not known: {text}")
    for problem in walk.problems:
        output.warn(f"Redis {name}: {problem}")


def walk_fields(
    name: str, walk: SiteWalk, treatments: Sequence[Treatment], unknown: Sequence[str], *, acted: bool
) -> dict[str, object]:
    """Return the same for programs."""
    totals = walk.totals
    return {
        "name": name,
        "cluster": walk.look.topology.is_cluster,
        "acted": acted,
        "whole": not walk.problems,
        "problems": list(walk.problems),
        "epochs": walk.epochs if acted else {},
        "namespaces": [
            {
                "prefix": one.namespace.prefix,
                "declared": one.namespace.policy.value,
                "policy": one.policy.value,
                "why": one.why,
                "keys": count.found if count else 0,
                "stale": count.stale if count else 0,
                "removed": count.removed if count else 0,
                "left": count.left if count else 0,
            }
            for one in treatments
            for count in [totals.get(one.namespace.prefix)]
        ],
        "undeclared": walk.undeclared,
        "masters": [
            {
                "address": one.master.address,
                "slots": [[each.first, each.last] for each in one.master.slots],
                "keys": one.keys,
                "clients": one.clients,
                "replicas_behind": one.replicas_behind,
                "problem": one.problem,
            }
            for one in walk.masters
        ],
        "unknown": list(unknown),
    }


def show_snapshots(output: Output, records: Sequence[SnapshotRecord]) -> None:
    """Write one row for each snapshot, the newest last."""
    output.table(
        ["snapshot", "begun", "whole", "masters", "keys", "size"],
        [
            [
                one.snapshot,
                instant_text(one.began_at),
                instant_text(one.ended_at),
                str(len(one.nodes)),
                str(sum(each.keys for each in one.nodes)),
                format_bytes(one.size_bytes),
            ]
            for one in records
        ],
        empty="there is no snapshot",
    )


def snapshot_fields(record: SnapshotRecord) -> dict[str, object]:
    """Return a snapshot for programs."""
    payload = record.to_payload()
    return {
        "snapshot": record.snapshot,
        "name": record.name,
        "archive": str(record.archive),
        "cluster": record.is_cluster,
        "taken_at": payload["taken_at"],
        "began_at": record.began_at.isoformat(),
        "ended_at": record.ended_at.isoformat(),
        "bytes": record.size_bytes,
        "nodes": [
            {
                "address": one.address,
                "slots": [[each.first, each.last] for each in one.slots],
                "keys": one.keys,
                "bytes": one.size_bytes,
                "sha256": one.sha256.hex(),
            }
            for one in record.nodes
        ],
    }
