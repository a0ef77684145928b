"""The daemon before it archives: who is the server, what may this host write, and what is waited for.

It is asked for its status from its first moment on: somebody looks just when regions or server are away.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cli.snapshot import BeginningSnapshot, BeginningState, RegionReached
from cli.wiring import own_archive, server_identifier
from pitr.errors import NotInitialised, ServerUnavailable
from storage.store import StoreUnavailable

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.settings import Settings
    from pitr.layout import ArchiveId
    from pitr.pipeline.sign import Signer
    from pitr.postgres.address import ServerAddress
    from pitr.repository import Repository
    from storage.regions import RegionStatus

START_PAUSE_S = 2.0


class Beginning:
    """What is known until the archive is found.  ``find_archive`` runs in one thread, the rest in any."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        signer: Signer,
        address: ServerAddress,
        regions: Callable[[], Sequence[RegionStatus]],
        log: FilteringBoundLogger,
        now: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._signer = signer
        self._address = address
        self._regions = regions
        self._log = log
        self._now = now
        self._seen = BeginningSnapshot(
            at=now(),
            started_at=now(),
            pid=os.getpid(),
            cluster=settings.cluster.name,
            quorum=settings.repository.quorum,
            state=BeginningState.STARTING,
            last_error=None,
            regions=(),
        )

    def find_archive(self, stopping: threading.Event) -> ArchiveId | None:
        """Ask the server who it is and the repository what we may write; None if we are to stop first."""
        while not stopping.is_set():
            try:
                identifier = server_identifier(self._settings, self._address)
                return own_archive(self._repository, self._signer, identifier)
            except (ServerUnavailable, StoreUnavailable) as error:
                is_server = isinstance(error, ServerUnavailable)
                state = BeginningState.WAITING_FOR_SERVER if is_server else BeginningState.WAITING_FOR_REGIONS
                self._seen = replace(self._seen, state=state, last_error=str(error))
                self._log.warning("waiting to begin", reason=str(error))
                stopping.wait(START_PAUSE_S)
        return None

    def to_fields(self) -> Mapping[str, Any]:
        """Return how it is now, for ``pitr status``."""
        regions = tuple(RegionReached(one.name, one.is_healthy, one.last_error) for one in self._regions())
        return replace(self._seen, at=self._now(), regions=regions).to_fields()

    def not_ready(self) -> NotInitialised:
        """Return the refusal of what only a daemon that archives can do."""
        seen = self._seen
        return NotInitialised(
            f"the daemon is not ready yet: {seen.state}",
            detail=seen.last_error or f"process {seen.pid} has only begun",
            hint="repeat it later; pitr status says what it waits for, pitr doctor what is wrong",
        )
