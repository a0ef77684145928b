"""Listings: a directory tree in the order of its keys, and several listings as one.  Memory is bounded."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.store import ObjectInfo

# Names of one directory held at a time, about 8 MB.  A larger directory is read
# again for each batch: 16 times for a million, where sorting it whole would take 100 MB.
_NAMES_MAX = 65_536


def sorted_names(root: Path, prefix: str, start_after: str, *, names_max: int = _NAMES_MAX) -> Iterator[str]:
    """Yield the keys of the files below ``root`` that start with ``prefix`` and are > ``start_after``."""
    base = prefix.rpartition("/")[0]
    return _walk(root, f"{base}/" if base else "", prefix, start_after, names_max)


def _walk(root: Path, base: str, prefix: str, start_after: str, names_max: int) -> Iterator[str]:
    last = ""
    while True:
        names: list[str] = []
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(root / base) as entries:
            # With its "/" a directory sorts where its keys do: "a-b" < "a/b" < "a0", as "-" < "/" < "0".
            found = (
                f"{base}{entry.name}/" if entry.is_dir(follow_symlinks=False) else f"{base}{entry.name}"
                for entry in entries
            )
            names = heapq.nsmallest(names_max, _wanted(found, last, prefix, start_after))
        for name in names:
            if name.endswith("/"):
                yield from _walk(root, name, prefix, start_after, names_max)
            else:
                yield name
        if len(names) < names_max:
            return
        last = names[-1]


def _wanted(names: Iterable[str], last: str, prefix: str, start_after: str) -> Iterator[str]:
    for name in names:
        if name <= last:
            continue
        if name.endswith("/"):
            # Below a directory, keys start with its name: skip it only if none of them can be wanted.
            if not (name.startswith(prefix) or prefix.startswith(name)):
                continue
            if name < start_after and not start_after.startswith(name):
                continue
        elif not name.startswith(prefix) or name <= start_after:
            continue
        yield name


@dataclass(frozen=True, slots=True)
class CopyInfo:
    """One line of a merged listing: which copies of an object there are."""

    key: str
    # One per source, in the order of the sources; None where the source does not list the key.
    sizes_bytes: tuple[int | None, ...]

    @property
    def size_bytes(self) -> int:
        """The size in the first source that has the object."""
        return next(size for size in self.sizes_bytes if size is not None)


def merge_listings(sources: Sequence[Iterator[ObjectInfo]]) -> Iterator[CopyInfo]:
    """Merge ascending listings by key."""
    heads: list[ObjectInfo | None] = [next(source, None) for source in sources]
    while True:
        key = min((head.key for head in heads if head is not None), default=None)
        if key is None:
            return
        sizes: list[int | None] = [None] * len(sources)
        for number, head in enumerate(heads):
            if head is not None and head.key == key:
                sizes[number] = head.size_bytes
                heads[number] = next(sources[number], None)
        yield CopyInfo(key, tuple(sizes))
