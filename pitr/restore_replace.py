"""The old cluster that a restore replaces: what it is, and whether it may be replaced at all.

Nothing is guessed: it is the stopped cluster of the same system identifier, and in a tablespace's place lies
that cluster's own directory and nothing else, or the restore is refused.  Only reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import MalformedValue, RestoreRefused
from pitr.postgres.control import CONTROL_BYTES_MAX, ControlFile, parse_control_file
from pitr.restore_keep import OldDirectory, open_regular
from pitr.restore_staged import IGNORED, KEPT_NAME, LEFT_OVER, check_stopped

_NAMES_SHOWN_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class OldCluster:
    """A cluster that may be replaced.  ``replaced``: by place, the names there that are its own."""

    directory: OldDirectory
    replaced: Mapping[Path, frozenset[str]]
    # Where something of it stays: tablespaces that are restored into other places, WAL that pg_wal leads to.
    left: tuple[Path, ...]


def find_old(
    target: Path, places: Mapping[int, Path], manifest: BackupManifest, *, foreign: int | None
) -> OldCluster | None:
    """Return the cluster at ``target`` if a restore of ``manifest`` may replace it; None if nothing is there.

    ``places``: where the tablespaces go.  ``foreign``: the system identifier of another cluster that may be
    replaced as well.  Raises RestoreRefused.
    """
    target = target.absolute()
    if target.is_symlink():
        raise RestoreRefused(
            f"{target} is a link",
            detail="what it leads to cannot be moved aside in one step",
            hint=f"name the directory itself: --into {target.resolve()}",
        )
    if not target.is_dir():
        return None
    names = _names(target)
    if not names - IGNORED - LEFT_OVER:
        return None
    if KEPT_NAME in names:
        raise RestoreRefused(
            f"{target / KEPT_NAME} holds what an earlier restore replaced",
            hint="look at it, and move it away",
        )
    check_stopped(target)
    _check_no_mounts(target, names)
    control = _control(target)
    wanted = manifest.archive.system_identifier
    if control.system_identifier not in {wanted, foreign}:
        raise RestoreRefused(
            f"{target} holds another cluster",
            detail=f"its system identifier is {control.system_identifier}, the backup's is {wanted}",
            hint="restore into another directory; --replace-cluster with its system identifier replaces it",
        )
    links = _links(target)
    version = os.fsdecode(control.version_directory(manifest.server_version // 10_000))
    replaced = {target: frozenset(names - LEFT_OVER)}
    for oid, place in places.items():
        # Only what the old cluster itself says is its own may be moved aside.
        if oid in links and links[oid].resolve() == place.resolve():
            replaced[place] = frozenset({version})
    _check_later_ones(links, places)
    left = tuple(
        old
        for oid, old in sorted(links.items())
        if oid in places and old.resolve() != places[oid].resolve() and old.is_dir()
    )
    wal = target / "pg_wal"
    if wal.is_symlink() and wal.is_dir():
        left = (*left, wal.resolve())
    return OldCluster(OldDirectory(target, links), replaced, left)


def _check_no_mounts(target: Path, names: set[str]) -> None:
    """Refuse a filesystem that is mounted below: it would be moved aside with the rest, and emptied."""
    for name in sorted(names):
        if (target / name).is_mount():
            raise RestoreRefused(
                f"a filesystem is mounted on {target / name}",
                hint="unmount it, or restore into another directory",
            )


def _check_later_ones(links: Mapping[int, Path], places: Mapping[int, Path]) -> None:
    """Refuse tablespaces that the backup has not: replay may make them anew, over what is there."""
    for oid, place in sorted(links.items()):
        if oid not in places and place.is_dir() and _names(place) - IGNORED:
            raise RestoreRefused(
                f"the old cluster has a tablespace in {place} that the backup has not",
                detail=f"it is {oid}; recovery could write over what is there",
                hint="restore into another directory, or from a later backup: pitr backups list",
            )


def _control(target: Path) -> ControlFile:
    try:
        descriptor = open_regular(bytes(target / "global" / "pg_control"))
        if descriptor is None:
            raise MalformedValue("it is no file")
        with os.fdopen(descriptor, "rb") as file:
            return parse_control_file(file.read(CONTROL_BYTES_MAX + 1))
    except (OSError, MalformedValue) as cause:
        names = sorted(_names(target))
        raise RestoreRefused(
            f"{target} holds no cluster that is known",
            detail=f"its control file cannot be read ({cause}); there are {len(names)} entries, "
            f"among them {', '.join(names[:_NAMES_SHOWN_MAX])}",
            hint="restore into a new directory; what is there may be needed to find out what happened",
        ) from cause


def _links(target: Path) -> dict[int, Path]:
    """Return where the old cluster's tablespaces are, by oid."""
    folder = target / "pg_tblspc"
    if not folder.is_dir():
        return {}
    found = {}
    for entry in folder.iterdir():
        if entry.name.isdigit() and entry.is_symlink():
            place = entry.readlink()
            if place.is_absolute():
                found[int(entry.name)] = place
    return found


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError as cause:
        raise RestoreRefused(f"could not look into {folder}", detail=str(cause)) from cause
