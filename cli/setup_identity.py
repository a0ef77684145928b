"""Whose repository ``pitr init`` makes: a new one, one that is joined, one that it left half-made.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.errors import UsageRefused
from pitr.catalogue.records import RepositoryRecord
from pitr.errors import KeyMissing, NotInitialised
from pitr.pipeline.keys import IdentityFile


@dataclass(frozen=True, slots=True)
class RegionLook:
    """What is in a region: a repository (``record``), other objects, or nothing.

    ``has_epochs``: some cluster was let in already.  ``is_missing``: its directory is still to be made.
    """

    name: str
    record: RepositoryRecord | None = None
    has_epochs: bool = False
    has_objects: bool = False
    is_missing: bool = False


@dataclass(frozen=True, slots=True)
class KnownIdentity:
    """An identity that there is already.

    ``is_given``: with ``--identity``, to join its repository.  ``is_left``: it lies where the identity of a
    new repository goes, so a run that did not end may have left it.
    """

    path: Path
    file: IdentityFile
    is_given: bool = True
    is_left: bool = False


def check_identity(
    known: KnownIdentity | None, looks: Sequence[RegionLook], quorum: int, *, has_signing_key: bool
) -> None:
    """Refuse an identity that does not fit what the regions hold, or to make a repository over another.

    ``has_signing_key``: a run before this one has made the host's key already.
    Raises KeyMissing, NotInitialised, UsageRefused; nothing was made.
    """
    holders = [look for look in looks if look.record is not None]
    if known is None or not known.is_given:
        _check_no_strangers(looks)
    if known is None:
        if holders:
            raise KeyMissing(
                f"{_names(holders)} {_hold(holders)} a repository already",
                detail=f"it is {_records(holders)}, and no identity was given",
                hint="--identity FILE lets this cluster into it; for a new one, name empty places",
            )
        return
    foreign = [look for look in holders if not _is_of(look.record, known.file)]
    if foreign:
        raise other_repository(known, foreign)
    if not known.is_left and not holders:
        raise NotInitialised(
            f"no region holds the repository of {known.path}",
            detail=f"it is {known.file.repository}; the regions are empty",
            hint="check the regions' URLs; without --identity a new repository is made",
        )
    # While the first run was at it no cluster was let in yet, and any number of regions may have the record.
    is_half_made = known.is_left and not any(look.has_epochs for look in holders)
    if not is_half_made and not known.is_given and not has_signing_key:
        # Not a repeat: a run comes to the epochs with its key made.  A new epoch would end another host's.
        raise UsageRefused(
            f"the repository of {known.path} is in use already",
            detail=f"{known.file.repository} has the archive of a cluster",
            hint=f"--identity {known.path} lets this cluster in, as the next writer where it is the same one",
        )
    if not is_half_made and len(holders) < min(quorum, len(looks)):
        lost = ", ".join(look.name for look in looks if look.record is None)
        raise UsageRefused(
            f"the repository is not in {lost}",
            detail="fewer of the given regions hold it than hold everything that is kept",
            hint="check the URLs; a new region is added while the others hold the repository",
        )


def _check_no_strangers(looks: Sequence[RegionLook]) -> None:
    strange = [look for look in looks if look.record is None and look.has_objects]
    if strange:
        raise UsageRefused(
            f"{_names(strange)} {_hold(strange)} objects, and no repository",
            detail="a new repository is made in empty places only: something else may live there",
            hint="name an empty bucket, a prefix in it, or an empty directory",
        )


def other_repository(known: KnownIdentity, foreign: Sequence[RegionLook]) -> KeyMissing:
    """Return the refusal of an identity that is not of the repository that ``foreign`` regions hold."""
    if any(look.record and look.record.repository == known.file.repository for look in foreign):
        message = (
            f"{known.path} is not the identity of the repository in {_plain(foreign)}: its root is another"
        )
    else:
        message = f"{known.path} belongs to another repository than {_names(foreign)} {_hold(foreign)}"
    hint = "give the identity of that repository with --identity, or check the regions' URLs"
    if not known.is_given:
        hint = f"check the regions' URLs; {known.path} was made here, and is never replaced"
    return KeyMissing(
        message,
        detail=f"the file is of repository {known.file.repository}, root {known.file.root};"
        f" found {_records(foreign)}",
        hint=hint,
    )


def _is_of(record: RepositoryRecord | None, file: IdentityFile) -> bool:
    return record is not None and (record.repository, record.root) == (file.repository, str(file.root))


def _records(looks: Sequence[RegionLook]) -> str:
    told = [f"{look.record.repository}, root {look.record.root}" for look in looks if look.record is not None]
    return "; ".join(dict.fromkeys(told))


def _names(looks: Sequence[RegionLook]) -> str:
    return ("region " if len(looks) == 1 else "regions ") + ", ".join(look.name for look in looks)


def _plain(looks: Sequence[RegionLook]) -> str:
    return ", ".join(look.name for look in looks)


def _hold(looks: Sequence[RegionLook]) -> str:
    return "holds" if len(looks) == 1 else "hold"
