"""Signals of rot and ransomware in a backup, against the backups before it.  Pure.

The strongest first: pages that are none, files that do not belong, relations that no longer compress,
relations of which far more changed than ever.  The thresholds are start values, to be tuned on real clusters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final

from pitr.catalogue.backup_record import BackupManifest, taken_before
from pitr.catalogue.backup_signs import RelationSign

BAD_PAGES_MAX: Final = 8
BAD_SHARE_MAX: Final = 1e-4
_PAGE_BYTES: Final = 8192
# Ciphertext leaves only headers to compress; a page's hole keeps the old bytes until it is used again, so
# what compressed far better before is suspected sooner.
RATIO_ENCRYPTED: Final = 1.3
RATIO_DROP: Final = 1.5
RATIO_DROP_ALONE: Final = 3.0
CHANGED_SHARE_MIN: Final = 0.2
CHANGED_SHARE_HIGH: Final = 0.3
CHANGED_TIMES: Final = 3.0
_BASELINE_BACKUPS: Final = 14
_SHOWN_MAX: Final = 100


class Level(StrEnum):
    """One CRITICAL signal, or two HIGH ones, are a reason to keep everything and to look."""

    CRITICAL = "critical"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class RotSignal:
    """What is unusual, and about what file or relation."""

    level: Level
    subject: str
    message: str


def rot_signals(backup: BackupManifest, others: Iterable[BackupManifest]) -> tuple[RotSignal, ...]:
    """Return the signals of a backup, the strongest first; ``others`` are all backups of its archive."""
    earlier = taken_before(backup, others)[:_BASELINE_BACKUPS]
    signals = [*_bad_pages(backup), *_alien(backup)]
    for sign in backup.signs.relations:
        before = [found for each in earlier for found in each.signs.relations if found.path == sign.path]
        signals += _relation(sign, before, is_incremental=backup.parent is not None)
    return tuple(signals[:_SHOWN_MAX])


def is_alarming(signals: Sequence[RotSignal]) -> bool:
    """Tell whether nothing should be deleted until a person has looked."""
    levels = Counter(signal.level for signal in signals)
    return levels[Level.CRITICAL] > 0 or levels[Level.HIGH] > 1


def _bad_pages(backup: BackupManifest) -> Iterable[RotSignal]:
    count = len(backup.findings)
    by_relation = Counter(finding.relation or finding.path for finding in backup.findings)
    for relation, pages in by_relation.most_common(_SHOWN_MAX):
        if pages > BAD_PAGES_MAX:
            yield RotSignal(Level.CRITICAL, relation, f"{pages} pages are no pages of PostgreSQL's any more")
    if (
        count
        and count > backup.size_bytes / _PAGE_BYTES * BAD_SHARE_MAX
        and not any(pages > BAD_PAGES_MAX for pages in by_relation.values())
    ):
        yield RotSignal(Level.CRITICAL, backup.backup, f"{count} pages failed their checksum")


def _alien(backup: BackupManifest) -> Iterable[RotSignal]:
    signs = backup.signs
    if signs.alien_count:
        more = f", of {signs.alien_count}" if signs.alien_count > 1 else ""
        yield RotSignal(
            Level.CRITICAL, signs.alien_files[0], f"a file that PostgreSQL does not put among relations{more}"
        )


def _relation(
    sign: RelationSign, before: Sequence[RelationSign], *, is_incremental: bool
) -> Iterable[RotSignal]:
    was = max((found.ratio for found in before), default=None)
    if (
        was is not None
        and was >= sign.ratio * (RATIO_DROP if sign.ratio < RATIO_ENCRYPTED else RATIO_DROP_ALONE)
        and sign.changed_share >= CHANGED_SHARE_MIN
    ):
        yield RotSignal(
            Level.HIGH, sign.path, f"what changed compresses {sign.ratio:.2f}-fold, and did {was:.2f}-fold"
        )
    shares = [found.changed_share for found in before if found.changed_share < 1]
    if (
        is_incremental
        and shares
        and sign.changed_share > max(CHANGED_SHARE_HIGH, CHANGED_TIMES * median(shares))
    ):
        yield RotSignal(
            Level.HIGH,
            sign.path,
            f"{sign.changed_share:.0%} of it changed since the last backup, and {median(shares):.0%} usually",
        )
