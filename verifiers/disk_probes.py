"""Probes of the disk that holds ``pg_wal``: how much a slot may keep there, by disk and rate of WAL.

Asks in a short session, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pitr.backup_checks import runs_here
from pitr.disk_forecast import DropPolicy
from pitr.errors import ServerRefused, ServerUnavailable
from pitr.postgres.server import Server
from pitr.postgres.slot_watch import DiskSpace, slot_limit_bytes, wal_disk_space, wal_rate, watch_slot
from verifiers.base import Finding, Severity

_CHECK: Final = "server.wal_disk"
# What is left for the rest of the disk's life: checkpoints' own WAL, sorts, growth of tables.
_SPARED_SHARE: Final = 0.25
_ADVICE_MIN_BYTES: Final = 1 << 30
_STATEMENT_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class WalDisk:
    """What was seen.  ``limit_bytes`` None: max_slot_wal_keep_size has none; ``rate`` in bytes a second."""

    space: DiskSpace
    kept_bytes: int
    limit_bytes: int | None
    rate: float | None

    @property
    def room_bytes(self) -> int:
        """Return how much WAL the slot could keep until the disk is full."""
        return self.space.free_bytes + self.kept_bytes

    @property
    def advised_bytes(self) -> int:
        """Return what is good for max_slot_wal_keep_size here, in whole GiB."""
        spared = self.room_bytes - int(_SPARED_SHARE * self.space.total_bytes)
        # Where the disk is nearly full already: half of what there is.
        best = max(spared, self.room_bytes // 2)
        return max(_ADVICE_MIN_BYTES, best >> 30 << 30)


def probe_wal_disk(dsn: str, slot: str, policy: DropPolicy) -> list[Finding]:
    """Look at the disk of ``pg_wal``; where the server runs on another host, that is said."""
    try:
        with Server.connect(dsn, statement_timeout_s=_STATEMENT_TIMEOUT_S) as server:
            seen = watch_slot(server, slot)
            limit_bytes, rate = slot_limit_bytes(server), wal_rate(server)
            is_here = seen.data_directory is not None and runs_here(server, seen.data_directory)
    except (ServerRefused, ServerUnavailable) as error:
        return [Finding(_CHECK, Severity.WARN, "server", error.message, error.hint)]
    space = None if seen.data_directory is None or not is_here else wal_disk_space(seen.data_directory)
    if space is None:
        hint = "run pitr on the database host, as the user who owns the data directory"
        return [Finding(_CHECK, Severity.WARN, "server", "the disk of pg_wal is not seen from here", hint)]
    return [judge_wal_disk(WalDisk(space, seen.kept_bytes, limit_bytes, rate), policy)]


def judge_unseen_disk(policy: DropPolicy) -> list[Finding]:
    """Say that nothing is dropped for a disk that nobody looks at.  Pure."""
    if not policy.drops:
        return []
    message = (
        'when_disk_fills = "drop" has no effect: with [backup] source = "protocol" the disk of pg_wal is not'
        " seen from here"
    )
    hint = "bound the slot at the server: ALTER SYSTEM SET max_slot_wal_keep_size"
    return [Finding(_CHECK, Severity.WARN, "server", message, hint)]


def judge_wal_disk(disk: WalDisk, policy: DropPolicy) -> Finding:
    """Say whether the disk is safe from us, and what would make it so.  Pure."""
    free = f"{_gib(disk.space.free_bytes)} of {_gib(disk.space.total_bytes)} free where pg_wal is"
    lasts = "" if not disk.rate else f"; at {disk.rate / (1 << 20):.1f} MiB/s of WAL, as of late, %s lasts %s"
    limit, advised = disk.limit_bytes, disk.advised_bytes
    advice = f"ALTER SYSTEM SET max_slot_wal_keep_size = '{advised >> 30}GB'"
    if limit is None and not policy.drops:
        if lasts:
            lasts %= ("the room", _hours(disk.room_bytes / (disk.rate or 1)))
        return Finding(_CHECK, Severity.WARN, "server", f"{free}, and nothing bounds the slot{lasts}", advice)
    if limit is not None and limit > disk.room_bytes:
        message = f"{free}: max_slot_wal_keep_size of {_gib(limit)} is more than there is room for"
        return Finding(_CHECK, Severity.WARN, "server", message, advice)
    bound = limit if limit is not None else max(0, disk.room_bytes - policy.below_bytes)
    if lasts:
        lasts %= (f"an outage within {_gib(bound)}", _hours(bound / (disk.rate or 1)))
    return Finding(_CHECK, Severity.OK, "server", f"{free}{lasts}")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"


def _hours(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{min(seconds / 3600, 99_999):.0f} h"
