"""The report's group "ransomware": what signed manifests say of rot, in figures beside the usual ones.

The signals themselves, and what makes one, are ``pitr.rot_signals``; here is what they were judged by, said
also where nothing is wrong.  Pure.  Reference: docs/verify.md, "Signs of rot and ransomware".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

from pitr.catalogue.backup_record import BackupManifest, taken_before
from pitr.catalogue.backup_signs import RelationSign
from pitr.pipeline.sign import encode_time
from pitr.rot_signals import (
    BAD_PAGES_MAX,
    BAD_SHARE_MAX,
    CHANGED_SHARE_HIGH,
    CHANGED_SHARE_MIN,
    CHANGED_TIMES,
    RATIO_DROP,
    RATIO_DROP_ALONE,
    RATIO_ENCRYPTED,
    rot_signals,
)

# As many as the signals are judged by.
BASELINE_BACKUPS: Final = 14
_NONE_BEFORE: Final = "no backup before this one tells"


@dataclass(frozen=True, slots=True)
class Indicator:
    """One figure of a backup, what it usually is, and from where on it is a signal."""

    name: str
    value: str
    baseline: str
    threshold: str


def indicators(backup: BackupManifest, others: Iterable[BackupManifest]) -> tuple[Indicator, ...]:
    """Return every figure that ``rot_signals`` judges; ``others`` are all backups of the archive."""
    earlier = taken_before(backup, others)[:BASELINE_BACKUPS]
    return (
        _bad_pages(backup, earlier),
        _alien_files(backup, earlier),
        _compression(backup, earlier),
        _change(backup, earlier),
    )


def last_clean_point(backup: BackupManifest, others: Sequence[BackupManifest]) -> str | None:
    """Return the newest backup, up to this one, that has no signal; None if each has."""
    for one in [backup, *taken_before(backup, others)]:
        if not rot_signals(one, others):
            return f"backup {one.backup}, which ended at {one.stop_lsn}, {encode_time(one.stopped_at)}"
    return None


def ransomware_fields(backup: BackupManifest, others: Sequence[BackupManifest]) -> dict[str, object]:
    """Return the group as a report has it."""
    return {
        "indicators": [asdict(one) for one in indicators(backup, others)],
        "last_clean_point": last_clean_point(backup, others),
    }


def _bad_pages(backup: BackupManifest, earlier: Sequence[BackupManifest]) -> Indicator:
    by_relation = Counter(finding.relation or finding.path for finding in backup.findings)
    most = max(by_relation.values(), default=0)
    return Indicator(
        "pages that are none",
        f"{len(backup.findings)}, at most {most} in one relation",
        _usual([len(one.findings) for one in earlier]),
        f"more than {BAD_PAGES_MAX} in one relation, or {BAD_SHARE_MAX:.2%} of all pages",
    )


def _alien_files(backup: BackupManifest, earlier: Sequence[BackupManifest]) -> Indicator:
    return Indicator(
        "files among relations that are none",
        str(backup.signs.alien_count),
        _usual([one.signs.alien_count for one in earlier]),
        "one",
    )


def _compression(backup: BackupManifest, earlier: Sequence[BackupManifest]) -> Indicator:
    """The relation that compresses worst against its best; small changes say nothing, as in the signals."""
    worst: tuple[float, RelationSign, float] | None = None
    for sign in backup.signs.relations:
        best = max((found.ratio for found in _before(sign, earlier)), default=None)
        if best is None or sign.changed_share < CHANGED_SHARE_MIN:
            continue
        fall = best / sign.ratio if sign.ratio else best
        if worst is None or fall > worst[0]:
            worst = (fall, sign, best)
    threshold = (
        f"{RATIO_DROP:g} times worse and below {RATIO_ENCRYPTED:g}-fold, or {RATIO_DROP_ALONE:g} times worse"
    )
    name = "compression of what changed"
    if worst is None:
        return Indicator(name, "no large relation with a past changed much", _NONE_BEFORE, threshold)
    fall, sign, best = worst
    return Indicator(
        name, f"{sign.ratio:.2f}-fold in {sign.path}, {fall:.2f} times worse", f"{best:.2f}-fold", threshold
    )


def _change(backup: BackupManifest, earlier: Sequence[BackupManifest]) -> Indicator:
    """The relation of which most changed against its usual part; a full backup copies everything."""
    name = "part of a relation that changed"
    threshold = f"more than {CHANGED_SHARE_HIGH:.0%} and {CHANGED_TIMES:g} times the usual part"
    if backup.parent is None:
        return Indicator(name, "not measured: a full backup copies everything", _NONE_BEFORE, threshold)
    worst: tuple[float, RelationSign, float] | None = None
    for sign in backup.signs.relations:
        shares = [found.changed_share for found in _before(sign, earlier) if found.changed_share < 1]
        if not shares:
            continue
        usual = median(shares)
        times = sign.changed_share / usual if usual else sign.changed_share * 1e9
        if worst is None or times > worst[0]:
            worst = (times, sign, usual)
    if worst is None:
        return Indicator(name, "no large relation with a past changed", _NONE_BEFORE, threshold)
    _, sign, usual = worst
    return Indicator(name, f"{sign.changed_share:.1%} of {sign.path}", f"{usual:.1%}", threshold)


def _before(sign: RelationSign, earlier: Sequence[BackupManifest]) -> list[RelationSign]:
    return [found for each in earlier for found in each.signs.relations if found.path == sign.path]


def _usual(counts: Sequence[int]) -> str:
    return f"{median(counts):g} in {len(counts)} backups before" if counts else _NONE_BEFORE
