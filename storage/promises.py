"""What a store's owner promises around the objects: digests verified, versions kept, locks, deletes denied.

Only some stores can be asked; of the others nothing is said, which is never that the promise is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class LockState:
    """Whether a bucket has Object Lock, and what locks each object by default, in words; None: nothing."""

    is_on: bool
    by_default: str | None = None


class Promises(Protocol):
    """Each question may raise StoreRefused, where the credentials may not ask, and StoreUnavailable.

    No question leaves an object behind, unless a store takes what it must refuse and then keeps it.
    """

    def takes_wrong_digest(self, key: str) -> bool:
        """Tell whether a body was stored under ``key`` though its digest was not that of the request."""

    def keeps_versions(self) -> bool:
        """Tell whether what is deleted or overwritten stays as a version."""

    def lock_state(self) -> LockState:
        """Return what the store says of Object Lock."""

    def may_delete(self, key: str) -> bool:
        """Tell whether the credentials may delete; ``key`` must name no object."""

    def may_delete_versions(self, key: str) -> bool:
        """Tell whether they may delete for good what is kept as a version; ``key`` must name no object."""


@runtime_checkable
class Promising(Protocol):
    """A store that can be asked."""

    def promises(self) -> Promises: ...
