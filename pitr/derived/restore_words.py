"""What a restored snapshot's directory says: names, the record as JSON, and what to do with it.  Pure."""

from __future__ import annotations

import json
from typing import Final

from pitr.derived.snapshot_record import NodeSnapshot, SnapshotRecord

RECORD_NAME: Final = "snapshot.json"


def rdb_name(number: int, node: NodeSnapshot) -> str:
    """Return the name of a node's file: its number, and the first slot that it owns."""
    slots = f"-slots-{node.slots[0]}" if node.slots else ""
    return f"node-{number:04d}{slots}.rdb"


def slots_text(node: NodeSnapshot) -> str:
    """Return a node's slots as ``CLUSTER NODES`` has them."""
    return " ".join(str(one) for one in node.slots)


def record_text(record: SnapshotRecord) -> str:
    """Return the record without what only the store needs, and with the names of the files."""
    payload = record.to_payload()
    nodes = [
        {
            **{name: value for name, value in node.to_payload().items() if name != "parts"},
            "file": rdb_name(number, node),
        }
        for number, node in enumerate(record.nodes)
    ]
    return json.dumps({**payload, "nodes": nodes}, indent=1, sort_keys=True) + "\n"


def read_me(record: SnapshotRecord) -> str:
    """Return what a person must know and do; nothing of it is done here."""
    rows = "\n".join(
        f"  {rdb_name(number, node)}  {node.size_bytes} bytes, about {node.keys} keys,"
        f" was {node.address}{', slots ' + slots_text(node) if node.slots else ''}"
        for number, node in enumerate(record.nodes)
    )
    span_s = (record.ended_at - record.began_at).total_seconds()
    text = f"""Snapshot {record.snapshot} of Redis {record.name!r}
begun {record.began_at:%Y-%m-%d %H:%M:%S}Z, whole {record.ended_at:%Y-%m-%d %H:%M:%S}Z, by the servers' clocks

{rows}

Each file is what its server held at one moment between these two times. The files are not of the same
moment: up to {span_s:.1f} s lie between them. What was written after it is in none of them.

1. Keep applications stopped. The database is restored, and events are replayed, before this.
2. Make {_servers(record)}, of Redis {_versions(record)} or newer with the same modules, with
   appendonly no: a server that has an AOF loads that and not the file.
"""
    if record.is_cluster:
        text += f"""   With cluster-enabled yes, and no replicas yet, give each the slots of one file:
     CLUSTER ADDSLOTSRANGE FIRST LAST ...  (before Redis 7: CLUSTER ADDSLOTS with every one)
     CLUSTER SET-CONFIG-EPOCH N            (another number for each)
   then let them meet: CLUSTER MEET. All {_slot_count(record)} slots must be covered.
"""
    return (
        text
        + """3. Stop each with SHUTDOWN NOSAVE, put its file into its dir under its dbfilename, owned by its
   user, and start it again. It loads the file; add replicas when all have.
4. Run pitr redis apply on it last, before applications: caches, locks and sessions in these files
   are as old as the files. Switch appendonly on again with CONFIG SET, which writes a new AOF.
"""
    )


def _servers(record: SnapshotRecord) -> str:
    return f"{len(record.nodes)} new, empty servers" if len(record.nodes) > 1 else "a new, empty server"


def _versions(record: SnapshotRecord) -> str:
    return max((node.redis_version for node in record.nodes), key=_numbers)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _slot_count(record: SnapshotRecord) -> int:
    return sum(one.last - one.first + 1 for node in record.nodes for one in node.slots)
