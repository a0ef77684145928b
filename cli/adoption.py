"""What an operator decided of a fork: kept in the state directory, honoured at the daemon's next connect.

A decision names one fork: the timeline, where it was left, and the archive's end.  Of any other fork it
says nothing, so an old one that was left behind does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pitr.archive_values import ForkJudge
from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import MalformedValue, PitrError, ServerUnavailable
from pitr.layout import ArchiveId
from pitr.postgres.leader import LeaderAddress
from pitr.wal.follow import ArchiveFork
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.store import StoreError
from storage.synced_file import replace_synced

FILE_NAME: Final = "adopted.json"
_BYTES_MAX: Final = 64 * 1024
# One each failover that lost WAL and that Patroni did not explain; the newest count.
_DECISIONS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Decision:
    """The operator says that this fork of the archive was a failover."""

    archive: ArchiveId
    fork: ArchiveFork
    decided_at: datetime


def read_decisions(state_dir: Path) -> tuple[Decision, ...]:
    """Return what was decided on this host, the oldest first.  Raises MalformedValue, OSError."""
    path = state_dir / FILE_NAME
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES_MAX + 1)
    except FileNotFoundError:
        return ()
    try:
        if len(content) > _BYTES_MAX:
            raise ValueError
        return tuple(_read(one) for one in json.loads(content)["decisions"])
    except (ValueError, KeyError, TypeError) as cause:
        raise MalformedValue(
            f"{path} is damaged", hint="remove it, and decide again: pitr adopt --as failover"
        ) from cause


def keep_decision(state_dir: Path, decision: Decision) -> None:
    """Keep a decision so that a crash does not lose it.  May be repeated.  Raises as ``read_decisions``."""
    others = [
        one
        for one in read_decisions(state_dir)
        if (one.archive, one.fork) != (decision.archive, decision.fork)
    ]
    kept = [*others, decision][-_DECISIONS_MAX:]
    content = json.dumps({"decisions": [_fields(one) for one in kept]}, indent=1).encode("ascii")
    replace_synced(state_dir / FILE_NAME, content)


class HostJudge(ForkJudge):
    """Patroni's lock, else the operator, says that a fork is a failover's.

    ``backups`` returns those of the archive that are complete.
    """

    def __init__(
        self,
        state_dir: Path,
        archive: ArchiveId,
        leader: LeaderAddress | None,
        *,
        backups: Callable[[], Iterable[BackupManifest]],
        say: Callable[[str], None],
    ) -> None:
        self._backups: Final = backups
        self._say: Final = say
        self._state_dir: Final = state_dir
        self._archive: Final = archive
        self._leader: Final = leader

    def why_failover(self, fork: ArchiveFork) -> str | None:
        return self._why_by_lock(fork) or self._why_by_decision(fork)

    def _why_by_lock(self, fork: ArchiveFork) -> str | None:
        """Ask anew: that it held the lock when we connected is not enough to leave WAL behind."""
        if self._leader is None:
            return None
        now, streaming = self._leader.leader(), self._leader.streaming
        if streaming is None or now.endpoint != streaming.endpoint:
            return None
        # A REST interface of another cluster vouches for nothing here.
        if now.system_identifier != self._archive.system_identifier:
            return None
        # The lock of a standby cluster was not taken from the primary whose WAL this is.
        if now.is_standby:
            return None
        if self._leaves_backup(fork):
            return None
        return f"{now.name} holds Patroni's lock, so this was a failover"

    def _leaves_backup(self, fork: ArchiveFork) -> bool:
        """Tell whether a complete backup began after the fork: then the lock is too little; a person decides.

        A cluster that was restored under Patroni has the lock, too.  No failover goes back so far, but for
        one right after a backup; there a person is asked in vain, which costs less than a restore that is
        taken for a failover.
        """
        try:
            left = [
                one.backup
                for one in self._backups()
                if fork.timeline <= one.timeline <= fork.ended_on and fork.left_at < one.start_lsn
            ]
        except StoreError as cause:
            raise ServerUnavailable(
                f"whether a backup lies after the fork cannot be read: {cause}"
            ) from cause
        if left:
            self._say(
                f"Patroni's lock is no proof of a failover here: backup {max(left)} began after the fork at"
                f" {fork.left_at}, so this may be a cluster that was restored"
            )
        return bool(left)

    def _why_by_decision(self, fork: ArchiveFork) -> str | None:
        try:
            decisions = read_decisions(self._state_dir)
        except (PitrError, OSError):
            return None  # the fork is refused then, with what to do
        for one in decisions:
            if (one.archive, one.fork) == (self._archive, fork):
                return f"the operator decided at {one.decided_at:%Y-%m-%d %H:%M:%SZ} that this was a failover"
        return None


def _fields(decision: Decision) -> dict[str, object]:
    fork = decision.fork
    return {
        "as": "failover",
        "system_identifier": str(decision.archive.system_identifier),
        "epoch": decision.archive.epoch,
        "timeline": str(fork.timeline),
        "left_at": str(fork.left_at),
        "ended_on": str(fork.ended_on),
        "end": str(fork.end),
        "following": str(fork.following),
        "follows_at": str(fork.follows_at),
        "decided_at": decision.decided_at.astimezone(UTC).isoformat(),
    }


def _read(fields: dict[str, str]) -> Decision:
    if fields["as"] != "failover":
        raise ValueError
    return Decision(
        ArchiveId(int(fields["system_identifier"]), int(fields["epoch"])),
        ArchiveFork(
            TimelineId.parse(fields["timeline"]),
            LSN.parse(fields["left_at"]),
            TimelineId.parse(fields["ended_on"]),
            LSN.parse(fields["end"]),
            TimelineId.parse(fields["following"]),
            LSN.parse(fields["follows_at"]),
        ),
        datetime.fromisoformat(fields["decided_at"]),
    )
