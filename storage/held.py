"""Which objects a store holds as firmly as if they had just been put."""

from __future__ import annotations

from collections.abc import Iterator

from storage.replicated import ReplicatedStore
from storage.store import ObjectInfo, ObjectStore


def list_held(store: ObjectStore, prefix: str) -> Iterator[ObjectInfo]:
    """Yield the objects below ``prefix`` that a put would acknowledge without sending anything, in key order.

    Of several regions a quorum has the object, and what the others lack is in the repair queue.  Raises as
    ``list_objects`` does.
    """
    if isinstance(store, ReplicatedStore):
        return store.list_held(prefix)
    return store.list_objects(prefix)
