"""The writer epoch that ``pitr init`` gives a cluster: the one this host writes already, or the next one.

A host that writes the newest epoch keeps it while its server goes on from what is archived.  A server that
was restored or set back goes on from somewhere before; it gets an epoch of its own, and with it a new key,
for by its key a writer is told from all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from cli.certified_past import CertifiedPast, find_certified
from cli.epoch_proof import ArchiveProof
from cli.epochs import ArchivedPast, Sameness, find_parent, leaves_all
from cli.server_past import ServerPast, check_stopped, received_end
from cli.setup_keys import HostKeyFiles
from pitr.catalogue.records import EpochParent, EpochRecord, HeadRecord, HistoryRecord
from pitr.errors import ArchiveDiverged, NotInitialised
from pitr.layout import ArchiveId, PieceKey
from pitr.pipeline.keys import IdentityFile
from pitr.pipeline.sign import Verifier
from pitr.repository import Repository
from pitr.wal.follow import next_run
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineHistory, TimelineId
from storage.regions import Region


@dataclass(frozen=True, slots=True)
class WrittenEpoch:
    """The epoch that this host writes now; ``left`` says how its server left the one that it wrote before."""

    record: EpochRecord
    is_new: bool
    left: str | None = None


def put_epoch(
    server: ServerPast,
    repository: Repository,
    regions: Sequence[Region],
    identity: IdentityFile,
    keys: HostKeyFiles,
    start: LSN,
    *,
    state_dir: Path | None,
    now: datetime,
    random: Callable[[int], bytes],
    certificate: Path | None = None,
) -> WrittenEpoch:
    """Let this host write: take its epoch if it has the newest and goes on from it, else make the next one.

    ``start`` is where the WAL begins that will be archived.  ``state_dir`` is the host's if it may leave its
    epoch: where the server left what this host archived, a new key is made for a new epoch, and the old one
    is kept aside.  May be repeated after a kill.  ``certificate``: the server's recovery certificate, None:
    the one beside its data directory, if there is one.
    Raises AlreadyRunning if a daemon writes as the old one still, UsageRefused for another file.
    """
    system_identifier = server.identity.system_identifier
    epochs = _epochs(repository, system_identifier)
    newest = epochs[-1] if epochs else None
    past = _Past(server, repository, identity, epochs, find_certified(server, certificate))
    signer, left = keys.read_or_make(random), None
    staged = keys.read_next() if state_dir is not None else None
    is_new = False
    own = next((one for one in reversed(epochs) if one.signer == str(signer.public)), None)
    if newest is not None and staged is not None and newest.signer == str(staged.public):
        # A run before this one was killed when the epoch was made already.
        signer, is_new = staged, True
    elif own is not None and newest is not None and state_dir is not None:
        left = past.how_left(newest.archive, state_dir) if own == newest else _superseded(own, newest)
        if left is not None:
            check_stopped(state_dir, ", with the key of the epoch that the server has left")
            signer = staged or keys.make_next(random)
    record = newest
    if record is None or record.signer != str(signer.public):
        parent = past.find_parent(start)
        archive = ArchiveId(system_identifier, 1 if newest is None else newest.archive.epoch + 1)
        record = EpochRecord(identity.repository, archive, now, str(signer.public), parent)
        is_new = True
    # Also where it is there: a region that was down when the epoch was made gets its record now.
    for region in regions:
        copy = Repository(region.store, identity.repository, identity.root)
        copy.write_epoch(record, identity.identity.root_signer())
        for timeline, content in server.history_files if is_new else ():
            file = HistoryRecord(identity.repository, record.archive, timeline, content)
            copy.put_history(file, signer)
    # Only now: before the new epoch is there, the old key is the one that may write.
    keys.take_next(signer, 0 if own is None else own.archive.epoch)
    return WrittenEpoch(record, is_new, left)


def why_new_epoch(
    server: ServerPast, repository: Repository, identity: IdentityFile, signer: Verifier, state_dir: Path
) -> str | None:
    """Return in words why this host would begin a new epoch for its server; None if it goes on.

    Changes nothing.  Raises NotInitialised if the repository has no archive of this cluster.
    """
    epochs = _epochs(repository, server.identity.system_identifier)
    if not epochs:
        raise NotInitialised(
            "the repository has no archive of the cluster with system identifier"
            f" {server.identity.system_identifier}",
            detail="this is another cluster than was archived from here",
            hint="check the connection string; pitr init --identity FILE lets another cluster in",
        )
    newest = epochs[-1]
    own = next((one for one in reversed(epochs) if one.signer == str(signer)), None)
    if own is None:
        return f"this host's key writes none of its epochs; the newest is {newest.archive.epoch}"
    if own != newest:
        return _superseded(own, newest)
    return _Past(server, repository, identity, epochs).how_left(newest.archive, state_dir)


def epoch_of(repository: Repository, system_identifier: int, signer: Verifier) -> int | None:
    """Return the newest epoch of a cluster that a key writes; None if it writes none."""
    own = [one for one in _epochs(repository, system_identifier) if one.signer == str(signer)]
    return own[-1].archive.epoch if own else None


def _epochs(repository: Repository, system_identifier: int) -> list[EpochRecord]:
    own = [one for one in repository.archives() if one.system_identifier == system_identifier]
    return sorted((repository.epoch(one) for one in own), key=lambda record: record.archive.epoch)


def _superseded(own: EpochRecord, newest: EpochRecord) -> str:
    return f"it wrote epoch {own.archive.epoch}, and another host writes epoch {newest.archive.epoch}"


class _Past:
    """What is archived of the server's cluster, read where it is needed."""

    def __init__(
        self,
        server: ServerPast,
        repository: Repository,
        identity: IdentityFile,
        epochs: Sequence[EpochRecord],
        certified: CertifiedPast | None = None,
    ) -> None:
        self._certified = certified
        self._server = server
        self._repository = repository
        self._identity = identity
        self._epochs = epochs
        self._histories: Mapping[ArchiveId, Sequence[TimelineHistory]] = {
            record.archive: repository.histories(record.archive) for record in epochs
        }

    def how_left(self, archive: ArchiveId, state_dir: Path) -> str | None:
        """Return in words how the server left what ``archive`` has; None if it goes on from there."""
        server = self._server
        received = received_end(self._repository, archive, state_dir)
        if received is None:
            return None
        flushed = server.identity.flushed
        try:
            run = next_run(received, server.history, flushed, segment_bytes=server.segment_bytes)
        except ArchiveDiverged as diverged:
            return f"{diverged.message}: {diverged.detail}"
        if run is None:
            # A standby that lags gets there; a primary that ends earlier was set back.
            return (
                None if server.is_standby else f"its WAL ends at {flushed}, the archive's at {received.end}"
            )
        if self._compare(archive, received.timeline, received.end) is Sameness.DIFFERENT:
            return f"its WAL on timeline {received.timeline} is not what is archived up to {received.end}"
        return None

    def find_parent(self, start: LSN) -> EpochParent | None:
        """Return the epoch that has most of the server's way, the newest of those that have as much."""
        best: EpochParent | None = None
        for record in reversed(self._epochs):
            archive = record.archive
            head = self._repository.latest_head(archive)
            if head is None and record.parent is not None:
                continue  # it wrote nothing: what it has is its parent's
            found = find_parent(
                self._server.history,
                self._archived(archive, head),
                start,
                partial(self._prove, archive),
            )
            if found is not None and (best is None or best.lsn < found.lsn):
                best = found
            if leaves_all(self._server.history, best):
                break
        return best

    def _archived(self, archive: ArchiveId, head: HeadRecord | None) -> ArchivedPast:
        histories = self._histories[archive]
        if head is None:
            return ArchivedPast(archive.epoch, histories, None)
        return ArchivedPast(
            archive.epoch, histories, head.wal_end, head.timeline, self._kept_to(archive, head.timeline)
        )

    def _kept_to(self, archive: ArchiveId, timeline: TimelineId) -> Mapping[TimelineId, LSN]:
        """Return how far WAL of timelines is archived that the archive left in failovers below its end."""
        own = next((one for one in self._histories[archive] if one.timeline == timeline), None)
        kept: dict[TimelineId, LSN] = {}
        for switch in () if own is None else own.switches:
            segment_bytes = self._server.segment_bytes
            number = max(1, switch.lsn.offset // segment_bytes)
            first = SegmentName.of(switch.timeline, number, segment_bytes)
            for key in self._repository.wal.objects(archive, switch.timeline, from_segment=first):
                end = key.end if isinstance(key, PieceKey) else key.segment.end(segment_bytes)
                kept[switch.timeline] = max(end, kept.get(switch.timeline, switch.lsn))
        return kept

    def _compare(self, archive: ArchiveId, timeline: TimelineId, until: LSN) -> Sameness:
        return self._proof(archive).compare(self._server.history, timeline, until)

    def _prove(self, archive: ArchiveId, timeline: TimelineId, until: LSN) -> Sameness:
        """Compare; where the server has too little of the timeline, its recovery certificate may be proof."""
        found, certified = self._compare(archive, timeline, until), self._certified
        if found is not Sameness.UNKNOWN or certified is None:
            return found
        is_that = (certified.repository, certified.archive) == (self._identity.repository, str(archive))
        if not is_that or not certified.is_of(self._server, timeline, until):
            return found
        last = certified.last
        return (
            Sameness.SAME
            if self._proof(archive).holds(last.segment, last.wal_bytes, last.sha256)
            else Sameness.UNKNOWN
        )

    def _proof(self, archive: ArchiveId) -> ArchiveProof:
        return ArchiveProof(
            self._server.served,
            self._repository,
            self._identity.identity,
            archive,
            self._epochs,
            self._histories,
            flushed=self._server.identity.flushed,
            segment_bytes=self._server.segment_bytes,
        )
