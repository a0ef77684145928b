"""What freezes expiry: signs that what would be kept is not what it should be.

Every reason is collected, none is raised: whoever looks wants all of them.  What is the trouble of one
region alone sets that region aside, and freezes nothing while enough others are sound: it is told, nothing is
deleted there, and a later run does it.  Reference: docs/format.md §6.6, docs/expire.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.layout import REPOSITORY_KEY, ArchiveId, backup_prefix, envelope_key, epoch_key, manifest_key
from pitr.recovery import instant_text
from pitr.region_heads import NamedStore
from pitr.rot_signals import is_alarming, rot_signals
from pitr.survey import ArchiveSurvey
from pitr.verified import RefusedObject
from storage.store import StoreError

# With every put the last region is a moment behind.
LAG_WAIT_S: Final = 10.0
_LAG_POLL_S: Final = 0.25
_LAGGING_MAX: Final = 1000
_KINDS: Final = ("manifests", "envelopes", "history")
_COPIES_TOLD_MAX: Final = 3
_WORKERS: Final = 8
_CLOCKS_APART: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class MissingCopy:
    """A region lacks an object that stays, or holds one of another size."""

    region: str
    key: str


@dataclass(frozen=True, slots=True)
class SetAside:
    """A region in which this run deletes nothing, and why."""

    region: str
    reason: str


@dataclass(frozen=True, slots=True)
class SoundRegions:
    """The regions in which something may be deleted; with any ``reasons`` nothing may be, anywhere."""

    sound: tuple[NamedStore, ...]
    aside: tuple[SetAside, ...]
    reasons: tuple[str, ...] = ()


def regions_needed(regions: int, quorum: int) -> int:
    """Return how many regions must be sound: enough to hold what stays, and to know all at quorum."""
    return max(quorum, regions - quorum + 1)


def without_doubtful(
    doubts: Sequence[RefusedObject], regions: Sequence[NamedStore], needed: int
) -> SoundRegions:
    """Set aside the regions that hold objects which cannot be used; ``regions`` are those that answer.

    Where too few are left, or nobody holds such an object any more, the doubts are reasons.
    """
    aside: dict[str, str] = {}
    found: set[str] = set()
    for region in regions:
        try:
            with ThreadPoolExecutor(_WORKERS, thread_name_prefix="expire-check") as pool:
                listed = list(pool.map(partial(_lists, region), (each.key for each in doubts)))
        except StoreError as error:
            aside[region.name] = f"it does not answer: {error}"
            continue
        held = [each for each, is_there in zip(doubts, listed, strict=True) if is_there]
        found |= {each.key for each in held}
        if held:
            more = f", and {len(held) - 1} more" if len(held) > 1 else ""
            aside[region.name] = f"{held[0].key} there cannot be used: {held[0].reason}{more}"
    sound = [region for region in regions if region.name not in aside]
    reasons = [
        f"{each.key} cannot be used: {each.reason}"
        for each in doubts
        if len(sound) < needed or each.key not in found
    ]
    if len(sound) < needed and not reasons:
        reasons = [f"too few regions are sound: {name}: {why}" for name, why in aside.items()]
    return SoundRegions(tuple(sound), _set_aside(aside), tuple(reasons))


def without_lacking(
    stays: ArchiveSurvey,
    keys: Mapping[ArchiveId, frozenset[bytes]],
    regions: SoundRegions,
    needed: int,
    *,
    wait_s: float = LAG_WAIT_S,
) -> SoundRegions:
    """Set aside the regions that lack what stays as well; where too few are left, that is a reason."""
    aside: dict[str, str] = {}
    for region in regions.sound:
        try:
            missing = missing_copies(stays, keys, [region], wait_s=wait_s)
        except StoreError as error:
            aside[region.name] = f"it does not answer: {error}"
            continue
        if missing:
            named = ", ".join(copy.key for copy in missing[:_COPIES_TOLD_MAX])
            aside[region.name] = (
                f"{len(missing)} copies of what stays are missing there: {named}; next: pitr repair"
            )
    sound = tuple(region for region in regions.sound if region.name not in aside)
    reasons = regions.reasons
    if len(sound) < needed:
        reasons += tuple(f"region {name}: {why}" for name, why in aside.items())
    return SoundRegions(sound, (*regions.aside, *_set_aside(aside)), reasons)


def _set_aside(reasons: Mapping[str, str]) -> tuple[SetAside, ...]:
    return tuple(SetAside(name, why) for name, why in reasons.items())


def _lists(region: NamedStore, key: str) -> bool:
    return any(info.key == key for info in islice(region.store.list_objects(key), 1))


def freezing_signals(
    survey: ArchiveSurvey, *, now: datetime, backup_age_max: timedelta | None
) -> tuple[str, ...]:
    """Return why nothing may be deleted now, as far as the records say.

    ``backup_age_max``: how long ago the newest backup may have been begun; None: nobody says.
    """
    found: list[str] = []
    if not survey.end.is_certain:
        found.append(f"the end of the archive is not certain: {survey.end.detail}")
    newest = max(survey.backups, key=lambda each: (each.stopped_at, each.backup), default=None)
    if newest is None:
        found.append("there is no backup")
        return tuple(found)
    if backup_age_max is not None and newest.started_at + backup_age_max < now:
        found.append(
            f"the newest backup {newest.backup} is older than expected:"
            f" begun {instant_text(newest.started_at)}"
        )
    if newest.stopped_at > now + _CLOCKS_APART:
        found.append(f"backup {newest.backup} is from the future: ended {instant_text(newest.stopped_at)}")
    of_its_archive = [each for each in survey.backups if each.archive == newest.archive]
    found += _signs_of_rot(of_its_archive)
    return tuple(found)


def _signs_of_rot(backups: Sequence[BackupManifest]) -> Iterator[str]:
    """Yield what is wrong with an archive's backups since all pages were last read, the newest first.

    An incremental backup without findings has not read the pages that an older one found bad, and one that
    was made of a chain has read none: only a full one from the server that has no signs takes them back.
    """
    for each in sorted(backups, key=lambda each: (each.stopped_at, each.backup), reverse=True):
        if each.findings:
            yield f"backup {each.backup} has {len(each.findings)} damaged pages"
        if is_alarming(rot_signals(each, backups)):
            yield f"backup {each.backup} has signs of rot: see `pitr backups show {each.backup}`"
        if each.parent is None and each.stands_for is None:
            return


def missing_copies(
    stays: ArchiveSurvey,
    keys: Mapping[ArchiveId, frozenset[bytes]],
    regions: Sequence[NamedStore],
    *,
    wait_s: float = LAG_WAIT_S,
) -> tuple[MissingCopy, ...]:
    """Return which regions lack what stays, by listing each of them; what is on its way is waited for.

    ``keys`` are the data keys of what stays.  WAL is compared by the regions that its units name.  Give only
    regions that answer.  Raises StoreError.
    """
    missing: list[MissingCopy] = []
    wrong: list[MissingCopy] = []
    for region in regions:
        wrong += [
            MissingCopy(region.name, key) for each in stays.backups for key in _lacking_of(each, region)
        ]
        for key in _lacking(stays, keys, region):
            missing.append(MissingCopy(region.name, key))
            if len(missing) > _LAGGING_MAX:
                return (*wrong, *missing)
    stores = {region.name: region for region in regions}
    deadline = time.monotonic() + wait_s
    while missing:
        missing = [copy for copy in missing if not _has(stores[copy.region], copy.key)]
        if not missing or time.monotonic() >= deadline:
            break
        time.sleep(_LAG_POLL_S)
    return (*wrong, *missing)


def _lacking(
    stays: ArchiveSurvey, keys: Mapping[ArchiveId, frozenset[bytes]], region: NamedStore
) -> Iterator[str]:
    yield from (str(unit.key) for unit in stays.units if region.name not in unit.regions)
    archives = [record.archive for record in stays.epochs]
    wanted = {REPOSITORY_KEY, *(epoch_key(archive) for archive in archives)}
    wanted |= {manifest_key(each.archive, each.backup) for each in stays.backups}
    wanted |= {envelope_key(archive, key) for archive, used in keys.items() for key in used}
    wanted |= {
        f"history/{archive}/{history.timeline}"
        for archive, histories in stays.histories.items()
        for history in histories
    }
    held: set[str] = set()
    for prefix in (
        "repository",
        "epochs/",
        *(f"{kind}/{archive}/" for kind in _KINDS for archive in archives),
    ):
        held |= {info.key for info in region.store.list_objects(prefix) if info.key in wanted}
    yield from sorted(wanted - held)


def _lacking_of(backup: BackupManifest, region: NamedStore) -> Iterator[str]:
    """Yield packs and index parts that the region lacks; none is on its way, for a manifest comes last."""
    wanted = {stored.key: stored.size_bytes for stored in (*backup.packs, *backup.indexes)}
    if wanted:
        for info in region.store.list_objects(backup_prefix(backup.archive, backup.backup)):
            if wanted.get(info.key) == info.size_bytes:
                del wanted[info.key]
    yield from sorted(wanted)


def _has(region: NamedStore, key: str) -> bool:
    try:
        region.store.get_range(key, 0, 1)
    except StoreError:
        return False
    return True
