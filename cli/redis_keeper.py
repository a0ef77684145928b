"""The daemon's snapshots of Redis: each site's when it is due, in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from cli.errors import ExitCode
from cli.own_command import own_command
from cli.own_process import END_S, Turn, failure_words, run_own
from cli.settings import Settings
from cli.snapshot import RedisSnapshotAge
from cli.timetable import Task
from pitr.errors import PitrError
from storage.store import StoreError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.config_redis import RedisSettings
    from pitr.layout import ArchiveId
    from pitr.repository import Repository

REDIS_TASK: Final = "redis-snapshot-"
"""Before the name of a site, as a task's name."""
# A master that is away, or slots that move, may pass in a minute; a refusal lasts.
_RETRY_FIRST_S: Final = 30.0
_RETRY_MAX_S: Final = 3_600.0


class RedisKeeper:
    """Takes snapshots of the sites that say how often.  Its methods may be called from any thread.

    ``command``: the words that start this program.
    """

    def __init__(
        self, settings: Settings, log: FilteringBoundLogger, *, command: Sequence[str] | None = None
    ) -> None:
        self._settings = settings
        self._log = log
        self._command = own_command() if command is None else tuple(command)
        self._sites = [one for one in settings.redis if one.snapshot_every_s is not None]
        # One works on the queue of what a region lacks; two at once would refuse each other.
        self._turn = Turn()
        self._last: dict[str, datetime | None] = {}

    def tasks(self) -> list[Task]:
        """Return the tasks for the timetable; none where no site says how often."""
        return [
            Task(
                f"{REDIS_TASK}{one.name}",
                one.snapshot_every_s,
                # Each may have to wait for all the others; its own time is kept below.
                sum(each.deadline_s + 2 * END_S for each in self._sites),
                partial(self._run, one),
                partial(self._last.get, one.name),
                retry_first_s=_RETRY_FIRST_S,
                retry_max_s=_RETRY_MAX_S,
            )
            for one in self._sites
        ]

    def learn(self, repository: Repository, archive: ArchiveId) -> None:
        """Read in the regions when each site's last snapshot was; what is not known is due at once."""
        from pitr.derived.snapshot_reader import list_snapshots

        if not self._sites:
            return
        try:
            for record in list_snapshots(repository, archive).records:
                self._last[record.name] = record.taken_at
        except (PitrError, StoreError) as error:
            self._log.warning("the snapshots of Redis cannot be listed", reason=str(error))

    def ages(self) -> tuple[RedisSnapshotAge, ...]:
        """Return how old each site's newest snapshot is."""
        now = datetime.now(UTC)
        return tuple(
            RedisSnapshotAge(one.name, last, None if last is None else max(0.0, (now - last).total_seconds()))
            for one in self._sites
            for last in (self._last.get(one.name),)
        )

    def _run(self, site: RedisSettings, cancel: threading.Event) -> None:
        """Take one, when no other is taken.  Raises PitrError; there is no snapshot then."""
        with self._turn.taken(f"the snapshot of Redis {site.name}", cancel):
            self._run_now(site, cancel)

    def _run_now(self, site: RedisSettings, cancel: threading.Event) -> None:
        began_at = datetime.now(UTC)
        words = ("redis", "snapshot", "--name", site.name)
        deadline_s = site.deadline_s + END_S
        exit_code, answer = run_own(self._command, self._settings.path, words, deadline_s, cancel)
        if exit_code != ExitCode.OK:
            raise PitrError(f"Redis {site.name} has no new snapshot: {failure_words(exit_code, answer)}")
        self._last[site.name] = began_at
        taken = (answer.get("data") or {}).get("snapshots") or [{}]
        facts = {name: taken[0].get(name) for name in ("snapshot", "bytes")}
        self._log.info("a snapshot of Redis was taken", name=site.name, **facts)
