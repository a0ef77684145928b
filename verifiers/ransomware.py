"""What the signed manifests say of an attack: each sign's figures, and the last backup without one.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pitr.catalogue.backup_record import BackupManifest, taken_before
from pitr.pipeline.sign import encode_time
from pitr.rot_signals import BAD_PAGES_MAX, CHANGED_SHARE_HIGH, RATIO_ENCRYPTED, is_alarming, rot_signals
from verifiers.check_maker import clean

_SIGNALS_MAX: Final = 50
_NAME_CHARS_MAX: Final = 300


def first_alarming(backups: Sequence[BackupManifest]) -> BackupManifest | None:
    """Return the oldest backup whose signs are a reason to look; None if there is none."""
    return next((one for one in _in_order(backups) if is_alarming(rot_signals(one, backups))), None)


def last_clean(backups: Sequence[BackupManifest], bad: BackupManifest) -> BackupManifest | None:
    """Return the newest backup before ``bad`` that shows no sign at all; None if there is none."""
    return next((one for one in taken_before(bad, backups) if not rot_signals(one, backups)), None)


def ransomware_group(backups: Sequence[BackupManifest], clean_point: str | None) -> dict[str, Any]:
    """Return the report's group: the newest backup's figures, and every signal of all of them."""
    indicators: list[dict[str, str]] = []
    ordered = _in_order(backups)
    if ordered:
        newest = ordered[-1]
        indicators += _figures(newest, taken_before(newest, backups))
    for one in ordered:
        for signal in rot_signals(one, backups):
            name = clean(f"{signal.level} {one.backup} {signal.subject}")[:_NAME_CHARS_MAX]
            indicators.append(
                {
                    "name": "".join(sign if sign.isprintable() else "?" for sign in name),
                    "value": clean(signal.message),
                    "baseline": "the backups before it",
                    "threshold": "none is expected",
                }
            )
    return {"indicators": indicators[: _SIGNALS_MAX + 4], "last_clean_point": clean_point}


def _figures(newest: BackupManifest, before: Sequence[BackupManifest]) -> list[dict[str, str]]:
    earlier = before[0] if before else None

    def of(backup: BackupManifest | None) -> dict[str, str]:
        if backup is None:
            return dict.fromkeys(("pages", "aliens", "ratio", "changed"), "no earlier backup")
        relations = backup.signs.relations
        return {
            "pages": str(len(backup.findings)),
            "aliens": str(backup.signs.alien_count),
            "ratio": f"{min(one.ratio for one in relations):.2f}" if relations else "no large relation",
            "changed": f"{max(one.changed_share for one in relations):.2f}"
            if relations
            else "no large relation",
        }

    value, baseline = of(newest), of(earlier)
    rows = (
        ("pages", "pages that are none of PostgreSQL's", f"more than {BAD_PAGES_MAX} of a relation"),
        ("aliens", "files that do not belong", "more than 0"),
        ("ratio", "least compression of a relation", f"below {RATIO_ENCRYPTED}, and far below what it was"),
        (
            "changed",
            "greatest changed part of a relation",
            f"above {CHANGED_SHARE_HIGH}, and far above usual",
        ),
    )
    return [
        {"name": name, "value": value[key], "baseline": baseline[key], "threshold": threshold}
        for key, name, threshold in rows
    ]


def clean_point_of(backup: BackupManifest | None) -> str | None:
    """Return the moment that a backup without a sign is of."""
    return None if backup is None else encode_time(backup.stopped_at)


def _in_order(backups: Sequence[BackupManifest]) -> list[BackupManifest]:
    return sorted(backups, key=lambda one: (one.stopped_at, one.backup))
