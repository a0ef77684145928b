"""The daemon's slow looks: slot, disk and tablespaces of the server, the regions' states, and comparisons."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cli.looking import look_and_go_on
from pitr.catalogue.sqlite import Catalogue, RegionState
from pitr.errors import PitrError
from pitr.postgres.replication import ReplicationConnection
from pitr.verified import RefusedObject
from storage.store import StoreError
from verifiers.gone_keys import what_is_gone

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.catalogue_keeper import CatalogueKeeper
    from cli.daemon_state import DaemonState
    from cli.disk_watch import DiskWatch
    from cli.release_signer import ReleaseSigner
    from cli.settings import Settings
    from cli.space_watch import SpaceWatch
    from pitr.layout import ArchiveId
    from pitr.postgres.address import ServerAddress
    from pitr.repository import Repository
    from storage.repair import RepairQueue
    from storage.replicated import ReplicatedStore

LOOK_EVERY_S = 10.0
EPOCHS_EVERY_LOOKS = 6
SPACES_EVERY_LOOKS = 3
# A comparison lists everything: ten minutes between two, where a region does not answer.
COMPARE_EVERY_LOOKS = 60
STOP_S = 5.0


class Watch:
    """A thread that looks every LOOK_EVERY_S; what it cannot see now, it sees later."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        archive: ArchiveId,
        store: ReplicatedStore,
        queue: RepairQueue,
        state: DaemonState,
        keeper: CatalogueKeeper,
        log: FilteringBoundLogger,
        address: ServerAddress,
        disk: DiskWatch | None = None,
        releases: ReleaseSigner | None = None,
        spaces: SpaceWatch | None = None,
    ) -> None:
        self._settings = settings
        self._address = address
        self._repository = repository
        self._archive = archive
        self._looks = 0
        self._strays: set[str] = set()
        self._store = store
        self._queue = queue
        # A put that was on its way when the last run was cut off may be in some regions only.
        self._is_unsure = queue.was_cut
        self._state = state
        self._keeper = keeper
        self._log = log
        self._disk = disk
        self._releases = releases
        self._spaces = spaces
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look_until_stopped, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon; a look that hangs in a call is left behind."""
        self._stopping.set()
        self._thread.join(STOP_S)

    def _look_until_stopped(self) -> None:
        while True:
            # Each for itself: what one trips over must not keep the next from looking.
            for name, look in self._due():
                look_and_go_on(name, look, self._log.error)
            self._looks += 1
            if self._stopping.wait(LOOK_EVERY_S):
                return

    def _due(self) -> Iterator[tuple[str, Callable[[], None]]]:
        if self._releases is not None:
            yield "the look for releases", self._releases.look
        yield "the comparison of regions", self._compare_regions
        yield "the look at the slot", self._look_at_slot
        yield "the look at the disk", self._look_at_disk
        if self._spaces is not None and self._looks % SPACES_EVERY_LOOKS == 0:
            yield "the look at tablespaces", self._spaces.look
        yield "the record of regions", self._record_regions
        if self._looks % EPOCHS_EVERY_LOOKS == 0:
            yield "the look at epochs", self._look_at_epochs

    def _look_at_disk(self) -> None:
        if self._disk is not None:
            self._state.wal_disk = self._disk.look()

    def _compare_regions(self) -> None:
        """Find again what a lost repair queue held, or never had; no region gets a new head after a loss."""
        is_due = self._is_unsure and self._looks % COMPARE_EVERY_LOOKS == 0
        if not self._queue.must_reconcile and not is_due:
            return
        try:
            found = self._store.reconcile(is_gone=what_is_gone(self._repository))
        except (PitrError, StoreError) as error:
            self._log.warning("the regions cannot be compared now", reason=str(error))
            return
        self._is_unsure = self._is_unsure and bool(found.unreached)
        if found.missing_copies or found.unreached:
            self._log.info(
                "regions compared",
                objects=found.objects,
                missing_copies=found.missing_copies,
                unreached=",".join(found.unreached) or None,
            )

    def _look_at_slot(self) -> None:
        if self._settings.wal.source == "archive":
            return
        try:
            connection = ReplicationConnection.connect(self._address.session())
            try:
                slot = connection.read_slot(self._settings.cluster.slot)
                flushed = connection.identify().flushed
            finally:
                connection.close()
        except PitrError as error:
            self._state.slot_retained_bytes = None
            self._log.debug("the slot cannot be looked at", reason=str(error))
            return
        kept = None if slot is None or slot.restart is None else max(0, flushed - slot.restart)
        self._state.slot_retained_bytes = kept

    def _look_at_epochs(self) -> None:
        """See whether another host was let in as this cluster's writer: readers no longer look at us then."""
        strays: list[RefusedObject] = []
        try:
            archives = self._repository.archives(strays)
        except (PitrError, StoreError) as error:
            self._log.warning("the epochs cannot be looked at", reason=str(error))
            return
        names = {stray.key for stray in strays}
        if names - self._strays:
            # Anybody may have put one there.
            self._log.warning("names among the epochs that are none", reason=", ".join(sorted(names)[:3]))
        self._strays = names
        newer = [
            other.epoch
            for other in archives
            if other.system_identifier == self._archive.system_identifier
            and other.epoch > self._archive.epoch
        ]
        if not newer:
            return
        self._state.last_error = (
            f"another host was let in as this cluster's writer: epoch {max(newer)}; what epoch"
            f" {self._archive.epoch} writes, readers find only with --archive {self._archive}"
        )
        self._state.count("superseded")
        self._log.critical("superseded", epoch=max(newer), ours=self._archive.epoch)

    def _record_regions(self) -> None:
        now = datetime.now(UTC)
        states = [
            RegionState(region.name, region.is_healthy, region.pending_repairs, now, region.last_error or "")
            for region in self._store.status()
        ]

        def record(catalogue: Catalogue) -> None:
            for state in states:
                catalogue.record_region_state(state)

        self._keeper.record(record)
