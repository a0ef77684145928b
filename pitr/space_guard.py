"""The guard before replay: WAL that makes a tablespace in a directory which is not this cluster's to take.

CREATE TABLESPACE is replayed with the directory that it named on the primary's host.  Replay accepts one
that has something in it: on that host it is the live cluster's own, and the restored cluster would write
over its files.  So such WAL is held back.  What a restore's own replay made before is known by the links of
its data directory.

Reference: PostgreSQL src/backend/commands/tablespace.c (create_tablespace_directories, InRecovery).
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final

from pitr.errors import RecoveryFailed
from pitr.wal.pages import PAGE_BYTES, WalGeometry
from pitr.wal.segment import SegmentName
from pitr.wal.spaces import MadeTablespace, find_made, find_made_across, may_end_one
from pitr.wal_plan_file import ReplayedWal

# What mkfs leaves in the top of a new filesystem, and no cluster's.
_IGNORED: Final = frozenset({"lost+found"})
_NAMES_SHOWN_MAX: Final = 3


class SpaceRefused(RecoveryFailed):
    """Replay must not go on here: it would make a tablespace in a directory that is not there, or in use.

    ``is_absent``: the directory is not there, at which PostgreSQL itself would end.
    """

    is_absent = False

    @property
    def words(self) -> str:
        """Return all that is to be said, in one line."""
        return "; ".join(part for part in (self.message, self.detail, self.hint) if part)


class SpaceGuard:
    """Looks at each segment's file before recovery gets it.  Holds nothing, so threads may share it."""

    def __init__(
        self,
        data_dir: Path,
        segment_bytes: int,
        replayed: ReplayedWal | None,
        *,
        takes_spaces: bool = True,
    ) -> None:
        """``data_dir`` is the cluster's that recovers; of WAL that it does not replay nothing is said.

        ``takes_spaces`` False: not even an empty directory may be taken.
        """
        self._data_dir = data_dir
        self._segment_bytes = segment_bytes
        self._geometry = WalGeometry(segment_bytes)
        self._replayed = replayed
        self._takes_spaces = takes_spaces

    def tail(self, file: Path) -> bytes:
        """Return what is needed of a segment to judge the one after it."""
        with file.open("rb") as segment:
            segment.seek(self._segment_bytes - PAGE_BYTES)
            return segment.read(PAGE_BYTES)

    def needs_tail(self, name: SegmentName, file: Path) -> bool:
        """Say whether a segment can be judged only with the one before it."""
        return may_end_one(self._geometry, name.start_offset(self._segment_bytes), _head(file))

    def check(self, name: SegmentName, file: Path, tail: bytes | None) -> None:
        """Raise SpaceRefused if replay must not have this segment.  May be repeated; MalformedValue, OSError.

        ``tail`` is that of the segment before, None where recovery does not come from there.
        """
        start = name.start_offset(self._segment_bytes)
        with file.open("rb") as segment:
            # A segment may have a GiB.
            content = mmap.mmap(segment.fileno(), 0, access=mmap.ACCESS_READ)
        made = find_made(self._geometry, start, memoryview(content))
        if tail is not None:
            made += find_made_across(self._geometry, start, tail, _head(file))
        for one in made:
            # One without a location lies in the data directory.
            is_replayed = self._replayed is None or self._replayed.start <= one.start < self._replayed.end
            if one.location and is_replayed:
                check_space(one, self._data_dir, takes_spaces=self._takes_spaces)


def check_space(made: MadeTablespace, data_dir: Path, *, takes_spaces: bool = True) -> None:
    """Raise SpaceRefused if replay of this record must not link the data directory to its location."""
    place = Path(os.fsdecode(made.location))
    what = f"at {made.start} WAL makes tablespace {made.oid} in {place}"
    if not takes_spaces:
        raise SpaceRefused(
            f"{what}, outside of the folder of this run",
            detail="replay would link the cluster to that very directory; a run that leaves nothing behind"
            " takes none, and no backup that has the tablespace is older than the moment",
            hint="take a backup (pitr backup): with it the tablespace lies in the folder of the run",
        )
    elsewhere = (
        f"or restore to a moment before {made.start}; or from a backup that has the tablespace, which"
        f" --tablespace-map then puts elsewhere (pitr backups list)"
    )
    try:
        names = sorted(entry.name for entry in os.scandir(place) if entry.name not in _IGNORED)
    except FileNotFoundError:
        refused = SpaceRefused(
            f"{what}, which does not exist on this host",
            detail="replay links the cluster to that very directory, and PostgreSQL would end there",
            hint=f"make it, empty and owned by the server's user, and go on: run the same restore again;"
            f" {elsewhere}",
        )
        refused.is_absent = True
        raise refused from None
    except OSError as cause:
        raise SpaceRefused(
            f"{what}, into which one cannot look here: {cause.strerror}",
            detail="replay would link the cluster to that very directory, whatever is in it",
            hint=f"restore on another host, where it is an empty directory of the server's user; {elsewhere}",
        ) from cause
    if not names or place.resolve() in _linked(data_dir):
        return
    shown = ", ".join(names[:_NAMES_SHOWN_MAX])
    raise SpaceRefused(
        f"{what}, which is not empty on this host",
        detail=f"replay would link the cluster to that very directory and write over what is in it ({shown}):"
        " where the source lives it is the live cluster's",
        hint="restore on another host; or, if no cluster uses it, move it away and make an empty one, owned"
        f" by the server's user, and run the same restore again; {elsewhere}",
    )


def _linked(data_dir: Path) -> set[Path]:
    """Return where the data directory's own tablespaces are: what is there, it has put there.

    By whichever link: a place may have been given to a second tablespace after the first was dropped.
    """
    try:
        links = [Path(entry.path) for entry in os.scandir(data_dir / "pg_tblspc") if entry.is_symlink()]
    except FileNotFoundError:
        return set()
    return {link.resolve() for link in links}


def _head(file: Path) -> bytes:
    with file.open("rb") as segment:
        return segment.read(PAGE_BYTES)
