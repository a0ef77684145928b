"""Whether a restore begins, goes on, or is refused, by the journal of an earlier one into the same place."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from pitr.errors import RestoreRefused
from pitr.restore_aim import Aim
from pitr.restore_journal import Journal, Phase, WorkDirectory
from pitr.restore_place import check_path

_OVER: Final = ("refused", "done")


def interrupted_aim(target: Path, *, replaces: bool) -> Aim | None:
    """Return what the restore was told that a new run into ``target`` can only go on with.

    None: there is none, or it does not say.  Raises RestoreRefused for a place that cannot be restored into.
    """
    check_path(target)
    try:
        found = WorkDirectory.of(target).read()
    except RestoreRefused:
        return None  # not a restore's: whoever looks at the place before it is written to says so
    if found is None or found.phase in _OVER or _begins_anew(found, target, replaces=replaces):
        return None
    return found.aim


def phase_to_go_on(
    found: Journal | None, target: Path, identities: Collection[str], *, replaces: bool
) -> Phase | None:
    """Return where to go on; None for a new restore.  Raises RestoreRefused.

    ``identities``: the digests that an earlier run may have noted of the same restore.  ``replaces``: a
    cluster that is there may be replaced.
    """
    if found is None:
        return None
    work = WorkDirectory.of(target).path
    if _begins_anew(found, target, replaces=replaces):
        return "files"
    if found.phase in _OVER:
        raise RestoreRefused(
            f"{target} holds the result of an earlier restore",
            detail=f"it was {found.phase}" + (f": {found.reason}" if found.reason else ""),
            hint=f"move it and {work} away, or restore into another directory",
        )
    if found.plan_sha256 not in identities:
        aim = found.aim
        raise RestoreRefused(
            f"{target} holds an interrupted restore of another plan",
            detail=None if aim is None else f"{aim}, from backup {aim.backup}",
            hint=f"{'repeat that one' if aim is None else f'go on with it: {aim.asked.command}'};"
            f" or move the directory and {work} away",
        )
    return found.phase


def _begins_anew(found: Journal, target: Path, *, replaces: bool) -> bool:
    """Tell whether the files are made again, of whatever plan: what was staged is only ours."""
    is_empty = not target.exists() or not any(target.iterdir())
    # A cluster that may be replaced is as good as none; whether it may is checked.
    is_over_and_free = found.phase in _OVER and (is_empty or replaces)
    return found.phase == "files" or is_over_and_free or (found.phase == "recovering" and is_empty)
