"""What the timetable runs in processes of their own: verifications and drills, and snapshots of Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.redis_keeper import RedisKeeper
from cli.settings import Settings
from cli.verify_keeper import VerifyKeeper

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.snapshot import RedisSnapshotAge
    from cli.timetable import Task
    from pitr.layout import ArchiveId
    from pitr.repository import Repository
    from storage.replicated import ReplicatedStore


class OwnProcesses:
    """Both keepers, as one for the daemon."""

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        self._verifications = VerifyKeeper(settings, log)
        self._redis = RedisKeeper(settings, log)

    def tasks(self) -> list[Task]:
        """Return the tasks for the timetable."""
        return [*self._verifications.tasks(), *self._redis.tasks()]

    def learn(self, store: ReplicatedStore, repository: Repository, archive: ArchiveId) -> None:
        """Read in the regions when each was done last."""
        self._verifications.learn(store, archive)
        self._redis.learn(repository, archive)

    def redis_ages(self) -> tuple[RedisSnapshotAge, ...]:
        """Return how old each site's newest snapshot is."""
        return self._redis.ages()
