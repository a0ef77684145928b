"""A replica's data directory, made of a restore that was only prepared: with all WAL that the plan has.

PostgreSQL then starts as a standby, replays what lies in pg_wal, and streams the rest from its primary; it
needs no store and no key of its own.  The last segment may end in zeros: in pg_wal that is no end of WAL
but where streaming begins.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.postgres.server_user import ServerUser, hand_over
from pitr.restore_directory import remove_recovery
from pitr.space_guard import SpaceGuard
from pitr.wal.lsn import LSN
from pitr.wal.timeline import history_file_name
from pitr.wal_assembly import ReadWal, SegmentFile, assemble_segment
from pitr.wal_plan_file import PlanSegments, without_end
from storage.synced_file import sync_directory

_AUTO_CONF: Final = "postgresql.auto.conf"
_STAGED_SUFFIX: Final = ".pitr"


@dataclass(frozen=True, slots=True)
class SeededReplica:
    """What was put into pg_wal; ``end`` is where it ends."""

    segments: int
    wal_bytes: int
    end: LSN


def seed_replica(
    data_dir: Path,
    plan_file: Path,
    read: ReadWal,
    *,
    user: ServerUser | None,
    workers: int,
    on_segment: Callable[[int], None] = lambda _bytes: None,
) -> SeededReplica:
    """Put the plan's WAL into the data directory's pg_wal, and let it start as a standby.  May be repeated.

    First the signal: what is half made must never start as a primary.  Raises as ``assemble_segment``, and
    SpaceRefused where WAL makes a tablespace in a directory that is not the replica's to take.
    """
    signal = data_dir / "standby.signal"
    signal.touch(mode=0o600)
    hand_over(signal, user)
    sync_directory(data_dir)
    (data_dir / "recovery.signal").unlink(missing_ok=True)
    remove_recovery(data_dir / _AUTO_CONF, user)
    plan = PlanSegments(plan_file)
    path, wal = plan.header.path, data_dir / "pg_wal"
    guard = SpaceGuard(data_dir, path.segment_bytes, without_end(plan.header.replayed))
    for history in path.histories:
        file = wal / history_file_name(history.timeline)
        file.write_bytes(history.content)
        file.chmod(0o600)
        hand_over(file, user)

    def fetch(number: int) -> SegmentFile:
        segment = plan.get(number)
        made = assemble_segment(segment, path, read, wal / f"{segment.name}{_STAGED_SUFFIX}")
        hand_over(made.path, user)
        on_segment(made.wal_bytes)
        return made

    sizes: list[int] = []
    tail: bytes | None = None
    with ThreadPoolExecutor(workers, "seed-wal") as fetching:
        for number, made in enumerate(fetching.map(fetch, range(plan.first, plan.last + 1)), plan.first):
            name = plan.name(number)
            # In their order, and before they have the name under which the server finds them.
            guard.check(name, made.path, tail)
            tail = guard.tail(made.path)
            made.path.rename(wal / str(name))
            sizes.append(made.wal_bytes)
    sync_directory(wal)
    return SeededReplica(len(sizes), sum(sizes), path.end)
