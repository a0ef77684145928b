"""The timeline history files of an archive: read from the server, put before the WAL that they explain."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from pitr.archive_resume import two_writers
from pitr.archive_retry import Retry
from pitr.archive_seal import Writer
from pitr.catalogue.records import HistoryRecord
from pitr.layout import history_key
from pitr.postgres.replication import ReplicationConnection
from pitr.postgres.replication_errors import HistoryMissing
from pitr.repository import Repository
from pitr.wal.timeline import TimelineHistory, TimelineId
from storage.store import ObjectConflict


class Histories:
    """Not thread-safe."""

    def __init__(
        self,
        writer: Writer,
        repository: Repository,
        retry: Retry,
        on_history: Callable[[HistoryRecord], None],
    ) -> None:
        self._writer: Final = writer
        self._repository: Final = repository
        self._retry: Final = retry
        self._on_history: Final = on_history
        self._put: set[TimelineId] = set()
        self._own: dict[TimelineId, TimelineHistory] = {}

    def own(self, timeline: TimelineId, server: TimelineHistory) -> TimelineHistory:
        """Return the history of the timeline that the archive ends on, as it is archived.

        Where no good copy is left it is the server's, which is then put: WAL must not wait for what nobody
        can bring back.
        """
        if timeline.number == 1 or timeline in self._own:
            return self._own.get(timeline, TimelineHistory(timeline))
        look = partial(self._repository.listed_histories, self._writer.archive, timeline)
        found = self._retry.until_done("reading a history file", look).records
        own = self._own[timeline] = found[0].history() if found else server.up_to(timeline)
        return own

    def read(self, connection: ReplicationConnection, timeline: TimelineId) -> list[HistoryRecord]:
        """Return the history files of a timeline's ancestors that are not put yet, and its own.

        Timeline 1 has none.  A standby that was cloned, and a server that was restored, need not have all of
        its ancestors': the own one names every switch, so what the server lacks is left out.
        """
        if timeline.number == 1:
            return []
        own = self._ask(connection, timeline)
        found = []
        for ancestor in (switch.timeline for switch in own.history().switches):
            if ancestor.number > 1 and ancestor not in self._put:
                with suppress(HistoryMissing):
                    found.append(self._ask(connection, ancestor))
        return [*found, own]

    def put(self, files: list[HistoryRecord]) -> None:
        """Put them, until they are at quorum.  Raises ArchiveDiverged if another writer has put others."""
        for file in files:
            if file.timeline in self._put:
                continue
            try:
                self._retry.until_done(
                    "putting a history file", partial(self._repository.put_history, file, self._writer.signer)
                )
            except ObjectConflict as cause:
                raise two_writers(history_key(file.archive, file.timeline)) from cause
            self._put.add(file.timeline)
            self._on_history(file)

    def _ask(self, connection: ReplicationConnection, timeline: TimelineId) -> HistoryRecord:
        writer, content = self._writer, connection.timeline_history(timeline)
        return HistoryRecord(writer.repository, writer.archive, timeline, content)
