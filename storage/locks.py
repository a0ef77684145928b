"""Object Lock: until when a stored object can be neither changed nor deleted, as its own store says.

Only some stores know of it; of the others nothing is said, which is never that there is a lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

from storage.store import ObjectStore

LockMode = Literal["GOVERNANCE", "COMPLIANCE"]


@dataclass(frozen=True, slots=True)
class ObjectLock:
    """The lock of one copy.  Who has the right to may lift GOVERNANCE, and nobody COMPLIANCE."""

    mode: LockMode
    until: datetime
    uri: str
    version: str | None


@runtime_checkable
class Locking(Protocol):
    """A store that can tell."""

    def lock_of(self, key: str) -> ObjectLock | None:
        """Return the lock of an object; None if it has none.  Raises ObjectMissing, StoreError."""
        ...


def lock_of(store: ObjectStore, key: str) -> ObjectLock | None:
    """Return the lock of an object; None where the store knows of none.  Raises as ``Locking.lock_of``."""
    return store.lock_of(key) if isinstance(store, Locking) else None
