"""C01 to C03: what the store holds for a restore, read from one region alone: signed, whole, and it opens.

Every object that the plan names is read in full, packs that the restore needs little of too: what nobody
reads rots unseen.  Reference: docs/format.md §3, §4, §7, §8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.catalogue.wal_records import IndexedHeader, PieceHeader
from pitr.errors import KeyMissing, KeyNotCommitted, MalformedValue, NotAuthentic
from pitr.layout import PieceKey, SegmentKey, part_and_number
from pitr.pipeline.keys import DataKey
from pitr.pipeline.seal import Context, iter_frames
from pitr.repository import ListedBackup, Repository
from pitr.restore_plan import RestorePlan
from pitr.wal_reader import DataKeySource
from storage.store import CopyDamaged, ObjectMissing, ObjectStore
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker, Judgement, failed, passed

# What a region got later than the others is put by repair; for so long it may lack the newest WAL.
LAG_ALLOWED: Final = timedelta(minutes=10)
_SHOWN_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class StoreScope:
    """What is looked at: the plan's objects as ``alone``, one region, has them.

    ``repository`` says what the other regions have.  ``began_at`` bounds what may be on its way.
    ``check_time`` raises when the time is up.
    """

    plan: RestorePlan
    repository: Repository
    alone: Repository
    region: str
    data_keys: DataKeySource
    began_at: datetime
    check_time: Callable[[], None] = lambda: None

    @property
    def chain(self) -> tuple[BackupManifest, ...]:
        return (self.plan.backup, *self.plan.parents)

    @property
    def wal_keys(self) -> list[PieceKey | SegmentKey]:
        return list(dict.fromkeys(link.unit.key for link in self.plan.links))


@dataclass(slots=True)
class StoreSeen:
    """What the checks saw beside their results.

    ``refused``: manifests of the chain whose signature or form is wrong.  ``uncommitted``: containers that
    are not committed to their key; ``asked``: those whose commitment was looked at.  ``has_ended``: every
    object was read, or is known to be missing.  ``late``: WAL that is on its way to the region.
    """

    chain: int
    listed: list[ListedBackup] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    asked: int = 0
    has_ended: bool = False
    late: list[str] = field(default_factory=list)

    @property
    def manifests_ok(self) -> bool | None:
        """Whether every manifest of the chain is signed by its writer; None if not all could be looked at."""
        if self.refused:
            return False
        return True if len(self.listed) == self.chain else None

    @property
    def commitment_ok(self) -> bool | None:
        """Whether every container is committed to its key; None if none or not all could be looked at."""
        if self.uncommitted:
            return False
        return True if self.asked and self.has_ended else None


@dataclass(slots=True)
class _Read:
    """What reading all objects found."""

    seen: StoreSeen

    objects: int = 0
    size_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    sealed_wrong: list[str] = field(default_factory=list)
    opened: int = 0
    frames: int = 0
    digests: list[str] = field(default_factory=list)

    def take(self, key: str, body_sha256: bytes, size_bytes: int) -> None:
        self.objects += 1
        self.size_bytes += size_bytes
        self.digests.append(f"{body_sha256.hex()} {size_bytes} {key}\n")

    def refuse(self, key: str, cause: BaseException) -> None:
        """Note a container that does not open, and whether its commitment is why."""
        self.sealed_wrong.append(f"{key}: {cause}")
        below: BaseException | None = cause
        while below is not None:
            if isinstance(below, KeyNotCommitted):
                self.seen.uncommitted.append(key)
                return
            below = below.__cause__

    @property
    def evidence(self) -> bytes:
        return "".join(sorted(self.digests)).encode()


def check_signatures(scope: StoreScope, maker: CheckMaker, seen: StoreSeen | None = None) -> CheckResult:
    """C01.  ``seen`` gets the manifests as they are in the region, with the digests of their objects."""
    seen = seen or StoreSeen(len(scope.chain))
    listed = seen.listed

    def judge() -> Judgement:
        expected = "the repository's record, epochs, manifests, heads and WAL headers are signed and linked"
        alone, faults, lines = scope.alone, [], []
        alone.record()
        for archive in sorted({span.archive for span in scope.plan.spans}):
            alone.epoch(archive)
            head = alone.find_head(archive)
            faults += [f"{refused.key}: {refused.reason}" for refused in head.refused]
            if head.newest is None:
                faults.append(f"archive {archive} has no signed head")
            else:
                lines.append(f"head {head.newest.head.sequence} {head.newest.payload_sha256.hex()}\n")
        for planned in scope.chain:
            try:
                found = alone.get_manifest(planned.archive, planned.backup)
            except (NotAuthentic, MalformedValue) as cause:
                seen.refused.append(planned.backup)
                faults.append(f"the manifest of {planned.backup}: {cause}")
                continue
            if found.manifest != planned:
                faults.append(f"the manifest of {planned.backup} differs from that of another region")
            listed.append(found)
            lines.append(f"manifest {planned.backup} {found.object_sha256.hex()}\n")
        headers = list(_headers(scope))
        lines += [f"wal {entry.key} {entry.header_sha256.hex()}\n" for entry in headers]
        faults += _unlinked(headers)
        evidence = "".join(lines).encode()
        said = f"{len(listed)} manifests and {len(headers)} WAL objects, all signed and linked"
        if faults:
            return failed(expected, f"{len(faults)} faults", _some(faults), evidence)
        return passed(expected, said, evidence)

    return maker.run("C01", f"verify signatures of {scope.plan.backup.backup} and its WAL", judge)


def _headers(scope: StoreScope) -> Iterator[IndexedHeader]:
    """Yield the verified WAL headers; what the region lacks is read elsewhere, and C02 says what it means."""
    for key in scope.wal_keys:
        scope.check_time()
        try:
            yield scope.alone.wal.header(key)
        except ObjectMissing:
            yield scope.repository.wal.header(key)


def _unlinked(headers: list[IndexedHeader]) -> list[str]:
    pieces = [entry for entry in headers if isinstance(entry.header, PieceHeader)]
    faults = []
    for before, after in pairwise(pieces):
        first, second = before.header, after.header
        assert isinstance(first, PieceHeader)
        assert isinstance(second, PieceHeader)
        is_next = second.archive == first.archive and second.sequence == first.sequence + 1
        if is_next and second.previous != before.header_sha256:
            faults.append(f"piece {second.sequence} does not name the piece before it")
    return faults


def check_objects(
    scope: StoreScope, maker: CheckMaker, seen: StoreSeen | None = None
) -> tuple[CheckResult, CheckResult]:
    """C02 and C03, which share one reading of everything."""
    read = _Read(seen or StoreSeen(len(scope.chain)))

    def judge_digests() -> Judgement:
        for manifest in scope.chain:
            _read_backup(scope, manifest, read)
        for key in scope.wal_keys:
            scope.check_time()
            _read_wal(scope, key, read)
        read.seen.has_ended = True
        expected = f"every object of the plan is in {scope.region}, with the size and SHA-256 that was signed"
        observed = f"{read.objects} objects, {read.size_bytes} bytes read"
        if read.seen.late:
            observed += (
                f"; {len(read.seen.late)} of the last {LAG_ALLOWED.seconds // 60} minutes are on their way"
            )
        faults = [*(f"missing: {key}" for key in read.missing), *(f"damaged: {key}" for key in read.damaged)]
        if faults:
            return failed(expected, f"{observed}; {len(faults)} bad", _some(faults), read.evidence)
        return passed(expected, observed, read.evidence)

    def judge_seals() -> Judgement:
        expected = "every frame's tag and every container's key commitment is right"
        observed = f"{read.opened} containers opened, {read.frames} frames of backups"
        if read.sealed_wrong:
            return failed(expected, f"{len(read.sealed_wrong)} do not open", _some(read.sealed_wrong))
        if not read.seen.has_ended:
            reason = f"not every object was read: {observed} before C02 was cut short"
            return Judgement(Outcome.SKIPPED, expected, observed, reason, read.evidence)
        if not read.opened:
            return failed(expected, observed, "nothing could be opened")
        return passed(expected, observed, read.evidence)

    name = scope.plan.backup.backup
    digests = maker.run("C02", f"read every object of {name} and its WAL from {scope.region}", judge_digests)
    return digests, maker.run("C03", f"open every container of {name} and its WAL", judge_seals)


def _read_backup(scope: StoreScope, manifest: BackupManifest, read: _Read) -> None:
    own = scope.data_keys.get(manifest.archive, manifest.key_id)
    for kind, objects in (("pack", manifest.packs), ("index", manifest.indexes)):
        for stored in objects:
            scope.check_time()
            body = _body(scope.alone.store, stored, read)
            if body is not None:
                _open(scope, manifest, kind, stored, body, own, read)


def _body(store: ObjectStore, stored: StoredObject, read: _Read) -> bytes | None:
    try:
        body = bytes(store.get(stored.key))
    except ObjectMissing:
        read.missing.append(stored.key)
        return None
    except CopyDamaged as cause:
        read.damaged.append(f"{stored.key}: {cause}")
        return None
    digest = hashlib.sha256(body).digest()
    read.take(stored.key, digest, len(body))
    if len(body) != stored.size_bytes or digest != stored.sha256:
        read.damaged.append(stored.key)
    return body


def _open(
    scope: StoreScope,
    manifest: BackupManifest,
    kind: str,
    stored: StoredObject,
    body: bytes,
    own: DataKey,
    read: _Read,
) -> None:
    part, number = part_and_number(stored.key)
    name = f"{manifest.backup}/{part:04d}/{number:06d}"
    context = Context(manifest.repository, manifest.archive, kind, name)
    key = own if stored.key_id in (None, own.key_id) else scope.data_keys.get(manifest.archive, stored.key_id)
    read.seen.asked += 1
    try:
        read.frames += sum(1 for _ in iter_frames(body, key, context))
        read.opened += 1
    except (NotAuthentic, MalformedValue) as cause:
        read.refuse(stored.key, cause)


def _read_wal(scope: StoreScope, key: PieceKey | SegmentKey, read: _Read) -> None:
    try:
        digest = scope.alone.wal.verify(key)
    except ObjectMissing:
        (read.seen.late if _is_on_its_way(scope, key) else read.missing).append(str(key))
        return
    except NotAuthentic as cause:
        read.damaged.append(f"{key}: {cause.detail or cause.message}")
        return
    try:
        content = scope.alone.read_wal(key, scope.data_keys)
    except KeyMissing:
        raise
    except (NotAuthentic, MalformedValue) as cause:
        read.seen.asked += 1
        read.refuse(str(key), cause)
        return
    read.seen.asked += 1
    read.opened += 1
    read.take(str(key), digest, len(content))


def _is_on_its_way(scope: StoreScope, key: PieceKey | SegmentKey) -> bool:
    """Tell whether another region has it, and got it so lately that this one need not yet."""
    try:
        header = scope.repository.wal.header(key).header
    except (NotAuthentic, ObjectMissing):
        return False
    if isinstance(header, PieceHeader):
        return scope.began_at - header.received_at < LAG_ALLOWED
    newest = header.transactions
    return newest is not None and scope.began_at - newest.max_at < LAG_ALLOWED


def _some(faults: list[str]) -> str:
    more = f"; and {len(faults) - _SHOWN_MAX} more" if len(faults) > _SHOWN_MAX else ""
    return "; ".join(faults[:_SHOWN_MAX]) + more
