"""Listed names, read: a name that is none of ours is passed over, and told.

Whoever may write to a region's folder can leave one there (a file manager, NFS, a person): no object of ours
is the worse for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from pitr.errors import MalformedValue
from pitr.verified import RefusedObject
from storage.store import ObjectInfo

# Enough to act on.
REFUSED_NAMES_MAX: Final = 1000

# Where strays are told; None: nobody wants to know.
Strays = list[RefusedObject] | None
_T = TypeVar("_T")


def read_names(
    listing: Iterable[ObjectInfo], parse: Callable[[str], _T], refused: Strays = None
) -> Iterator[_T]:
    """Yield what ``parse`` makes of each key.  One that it refuses is added to ``refused``, up to a bound."""
    for _, value in named_objects(listing, parse, refused):
        yield value


def named_objects(
    listing: Iterable[ObjectInfo], parse: Callable[[str], _T], refused: Strays = None
) -> Iterator[tuple[ObjectInfo, _T]]:
    """Yield the same together with what is listed."""
    for info in listing:
        try:
            value = parse(info.key)
        except MalformedValue as cause:
            if refused is not None and len(refused) < REFUSED_NAMES_MAX:
                refused.append(RefusedObject(info.key, cause.message))
            continue
        yield info, value
