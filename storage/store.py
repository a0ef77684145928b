"""What every object store promises.

Objects are sealed before they get here, written once, and never changed.  So a
store needs no rename, append or lock, and one copy is as good as another.
Nothing in this package knows what an object means; see docs/format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

# One bound limits memory, the cost of a retry, and the loss with one lost object;
# and it spares every caller a streaming interface.
OBJECT_BYTES_MAX = 64 * 1024 * 1024


class StoreError(Exception):
    """Base of all store errors.  ``__cause__`` keeps the backend's own error."""


class ObjectMissing(StoreError):
    """No object has this key.  Asking again will not help."""


class ObjectConflict(StoreError):
    """The key already holds other bytes.  Two writers, or a bug: never retry."""


class CopyInTheWay(StoreError):
    """The key holds bytes that no good writer put there, and they are never overwritten.

    Other regions may take the object; this one does once a person has removed what lies there.
    """


class CopyDamaged(StoreError):
    """A copy was read and is not what it must be.  Another region may hold a good one."""


class StoreRefused(StoreError):
    """The store says no: permission, quota or object lock.  A person must act."""


class StoreUnavailable(StoreError):
    """No usable answer in time.  The outcome is unknown; the call may be repeated."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    size_bytes: int


# Called with the bytes of one copy; raises CopyDamaged if they are not what they must be.
CopyCheck = Callable[[bytes], None]


class ObjectStore(Protocol):
    """Any method may raise StoreRefused or StoreUnavailable.  Thread-safe.

    A key is 1 to 512 characters of ``[A-Za-z0-9._/-]``, without empty, ``.`` or ``..`` parts,
    and a part has at most 255.  No key is another's parent (``a`` and ``a/b``): a directory
    could not hold both.  What breaks these rules, or OBJECT_BYTES_MAX, is StoreRefused.
    """

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        """Return once ``body`` is durable under ``key``.

        Putting equal bytes again succeeds: a caller whose reply was lost must be
        able to repeat the call.  Raises ObjectConflict if the bytes differ.
        ``sha256`` is the digest of ``body`` where the caller has it, for the store to verify: StoreRefused
        if it is not; a ``storage.digest.BodyDigest`` of this very object proves itself.  ``after_all``: in
        no copy may the object appear before every object that was put earlier through this store.
        """

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        """Return the whole object.  Raises ObjectMissing; CopyDamaged if no copy passes ``check``."""

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        """Return up to ``length`` bytes from ``start``; shorter (or empty) only at the object's end.

        Raises ObjectMissing; CopyDamaged if no copy passes ``check``.
        """

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """Yield objects whose key starts with ``prefix``, in ascending key order.

        So copies compare by merging.  ``start_after`` leaves out keys up to and including that one.
        """

    def delete(self, key: str) -> None:
        """Remove the object.  A missing key is success: deletion may be repeated."""
