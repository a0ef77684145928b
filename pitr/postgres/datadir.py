"""What of a data directory belongs in a base backup, as PostgreSQL's own base backup decides it.

Lists, and reads no file's content.  The server goes on meanwhile: files and directories that are
gone when we come to them were dropped, and replay from the backup's start drops them again.

Reference: PostgreSQL src/backend/backup/basebackup.c (sendDir, excludeDirContents, excludeFiles),
src/common/relpath.c and src/common/file_utils.c; docs/format.md §8.
"""

from __future__ import annotations

import heapq
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from pitr.errors import BackupFailed

# Directories that come empty: what they hold is of no use, or wrong, after a restore.
_EMPTIED = frozenset(
    [
        b"pg_dynshmem",
        b"pg_notify",
        b"pg_replslot",
        b"pg_serial",
        b"pg_snapshots",
        b"pg_stat_tmp",
        b"pg_subtrans",
    ]
)
# Below pg_wal only these, empty: WAL is the archive's business.  (summaries: 17 and later.)
_WAL_DIRECTORIES = (b"pg_wal/archive_status", b"pg_wal/summaries")
_EXCLUDED = frozenset(
    [
        *(b"postgresql.auto.conf.tmp", b"current_logfiles.tmp", b"backup_label", b"tablespace_map"),
        *(b"backup_manifest", b"postmaster.pid", b"postmaster.opts", b".DS_Store"),
    ]
)
_EXCLUDED_PREFIXES = (b"pg_internal.init", b"pgsql_tmp")
CONTROL_PATH = b"global/pg_control"
# A path below the data directory cannot be longer, nor a tree deeper, than this.
_PATH_BYTES_MAX = 4096
_DEPTH_MAX = 64
_RELATION = re.compile(rb"([1-9][0-9]{0,9})(?:_(fsm|vm|init))?(?:\.([1-9][0-9]{0,8}))?")
_TEMPORARY = re.compile(rb"t[0-9]+_[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?")
_DATABASE_DIRECTORY = re.compile(
    rb"(?:base/(?P<base>[0-9]+)|(?P<global>global)|"
    rb"pg_tblspc/(?P<space>[0-9]+)/PG_[0-9]+_[0-9]+/(?P<database>[0-9]+))"
)
# Files wait here to be dealt largest first; a cluster of more files is sorted in part only.
DEAL_WINDOW_FILES = 65_536

_BESIDE_RELATIONS = frozenset([b"PG_VERSION", b"pg_filenode.map", b"pg_control", b"pg_internal.init"])

PG_DEFAULT_OID = 1663
PG_GLOBAL_OID = 1664


@dataclass(frozen=True, slots=True)
class RelationFile:
    """What a relation file's path says: one segment of one fork.  ``database`` 0 is the shared catalogues."""

    tablespace: int
    database: int
    filenode: int
    fork: str
    segment: int


@dataclass(frozen=True, slots=True)
class DataFile:
    """A regular file to copy; ``size_bytes`` is what it was when it was listed."""

    path: bytes
    size_bytes: int
    relation: RelationFile | None


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """A directory to make; ``mode`` are its permission bits."""

    path: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class TablespaceLink:
    """A symbolic link to make, from ``path`` to where tablespace ``oid`` is restored."""

    path: bytes
    oid: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that PostgreSQL never puts there and a base backup cannot hold; said, not copied."""

    path: bytes
    reason: str


DataEntry: TypeAlias = DataFile | DataDirectory | TablespaceLink | LeftOut


@dataclass(frozen=True, slots=True)
class _Found:
    """One name in a directory, not followed if it is a link."""

    path: bytes
    name: bytes
    mode: int
    size_bytes: int


def parse_relation_path(path: bytes) -> RelationFile | None:
    """Return what a path below the data directory says of a relation file; None for any other file."""
    directory, _, name = path.rpartition(b"/")
    where = _DATABASE_DIRECTORY.fullmatch(directory)
    match = _RELATION.fullmatch(name) if where else None
    if where is None or match is None:
        return None
    filenode, fork, segment = match.groups()
    if where["global"]:
        tablespace, database = PG_GLOBAL_OID, 0
    elif where["base"]:
        tablespace, database = PG_DEFAULT_OID, int(where["base"])
    else:
        tablespace, database = int(where["space"]), int(where["database"])
    return RelationFile(
        tablespace, database, int(filenode), fork.decode() if fork else "main", int(segment or 0)
    )


def is_alien(path: bytes) -> bool:
    """Tell whether a file lies among relations and is none that PostgreSQL puts there."""
    directory, _, name = path.rpartition(b"/")
    if _DATABASE_DIRECTORY.fullmatch(directory) is None or name in _BESIDE_RELATIONS:
        return False
    return _RELATION.fullmatch(name) is None and _TEMPORARY.fullmatch(name) is None


def list_data_directory(
    data_dir: bytes, version_directory: bytes, *, but: Collection[bytes] = ()
) -> Iterator[DataEntry]:
    """Yield what a base backup of ``data_dir`` holds, a directory before what is in it.

    ``version_directory`` is the name of the server's own directory in each tablespace, such as
    ``PG_17_202406281``.  ``global/pg_control`` is left out: it is copied last, by itself; and so is what the
    data directory itself has under the names of ``but``.  Streams, so that memory does not grow with the
    cluster.  Raises BackupFailed if something cannot be listed.
    """
    yield from _Listing(data_dir, version_directory, but).walk(b"", 0)


def largest_first(
    entries: Iterator[DataEntry], other: Callable[[DataEntry], None], *, window: int = DEAL_WINDOW_FILES
) -> Iterator[DataFile]:
    """Yield the files among ``entries``, the largest of the next ``window`` first.

    What is no file goes to ``other``.  So no worker is left alone with the largest file at the end.
    """
    heap: list[tuple[int, bytes, DataFile]] = []
    for entry in entries:
        if not isinstance(entry, DataFile):
            other(entry)
            continue
        item = (-entry.size_bytes, entry.path, entry)
        if len(heap) < window:
            heapq.heappush(heap, item)
        else:
            yield heapq.heappushpop(heap, item)[2]
    while heap:
        yield heapq.heappop(heap)[2]


class _Listing:
    """One walk over a data directory."""

    def __init__(self, data_dir: bytes, version_directory: bytes, but: Collection[bytes]) -> None:
        self._data_dir = data_dir
        self._version_directory = version_directory
        self._but = but

    def walk(self, path: bytes, depth: int) -> Iterator[DataEntry]:
        """Yield what is in ``path``."""
        if depth > _DEPTH_MAX or len(path) > _PATH_BYTES_MAX:
            raise BackupFailed("the data directory is nested too deeply", detail=os.fsdecode(path))
        is_relations = _DATABASE_DIRECTORY.fullmatch(path) is not None
        unlogged = self._unlogged(path) if is_relations else frozenset()
        for found in self._scan(path):
            is_lost = is_relations and _is_lost(found.name, unlogged)
            is_left_out = found.path == CONTROL_PATH or found.path in self._but
            if not is_left_out and not is_lost and not _is_excluded(found.name):
                yield from self._entry(found, path, depth)

    def _entry(self, found: _Found, parent: bytes, depth: int) -> Iterator[DataEntry]:
        is_link, is_directory = stat.S_ISLNK(found.mode), stat.S_ISDIR(found.mode)
        permissions = stat.S_IMODE(found.mode) if is_directory else 0o700
        if stat.S_ISREG(found.mode):
            yield DataFile(found.path, found.size_bytes, parse_relation_path(found.path))
        elif found.path == b"pg_wal" and (is_link or is_directory):
            yield DataDirectory(found.path, permissions)
            for path in _WAL_DIRECTORIES:
                if os.path.isdir(self._full(path)):  # noqa: PTH112 - bytes, not text
                    yield DataDirectory(path, permissions)
        elif found.path in _EMPTIED and (is_link or is_directory):
            yield DataDirectory(found.path, permissions)
        elif parent == b"pg_tblspc" and found.name.isdigit() and (is_link or is_directory):
            if is_link:
                yield TablespaceLink(found.path, int(found.name))
            else:
                yield DataDirectory(found.path, permissions)  # in place (allow_in_place_tablespaces)
            yield from self._tablespace(found.path, depth + 1)
        elif is_directory:
            yield DataDirectory(found.path, permissions)
            yield from self.walk(found.path, depth + 1)
        else:
            # PostgreSQL warns and goes on; so a link to a file elsewhere is not in its backups either.
            kind = "a symbolic link" if is_link else "a special file"
            yield LeftOut(found.path, f"{kind}, neither copied nor followed")

    def _tablespace(self, path: bytes, depth: int) -> Iterator[DataEntry]:
        for found in self._scan(path):
            if found.name == self._version_directory and stat.S_ISDIR(found.mode):
                yield DataDirectory(found.path, stat.S_IMODE(found.mode))
                yield from self.walk(found.path, depth + 1)
            else:
                # Another major version's after pg_upgrade, or what somebody put beside it.
                yield LeftOut(found.path, "not this server's directory in the tablespace")

    def _unlogged(self, path: bytes) -> frozenset[bytes]:
        """Return the file nodes that have an _init fork, which only unlogged relations do.

        A relation that is made after this look is copied in vain; recovery resets it all the same.
        """
        names = (found.name for found in self._scan(path) if found.name.endswith(b"_init"))
        matches = (_RELATION.fullmatch(name) for name in names)
        return frozenset(match[1] for match in matches if match)

    def _scan(self, path: bytes) -> Iterator[_Found]:
        """Yield what is in one directory, in the file system's order; nothing if it is gone."""
        try:
            with os.scandir(self._full(path)) as scanner:
                for entry in scanner:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # dropped meanwhile
                    child = path + b"/" + entry.name if path else entry.name
                    yield _Found(child, entry.name, status.st_mode, status.st_size)
        except FileNotFoundError as cause:
            if not path:
                raise BackupFailed("the data directory is gone", detail=str(cause)) from cause
        except OSError as cause:
            raise BackupFailed(
                f"could not list {os.fsdecode(path) or 'the data directory'}",
                detail=str(cause),
                hint="the daemon needs the rights of the server's user, or of its group (initdb -g)",
            ) from cause

    def _full(self, path: bytes) -> bytes:
        return os.path.join(self._data_dir, path)  # noqa: PTH118 - bytes, not text


def _is_excluded(name: bytes) -> bool:
    return name in _EXCLUDED or name.startswith(_EXCLUDED_PREFIXES)


def _is_lost(name: bytes, unlogged: frozenset[bytes]) -> bool:
    """Tell whether a crash would empty the file: temporary relations, and unlogged ones but for _init."""
    if _TEMPORARY.fullmatch(name):
        return True
    match = _RELATION.fullmatch(name)
    return match is not None and match[1] in unlogged and match[2] != b"init"
