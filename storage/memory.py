"""MemoryStore: objects in a dictionary.  For tests and trying things out; as strict as the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from storage.checks import check_body, check_digest, check_key, check_prefix, check_range
from storage.store import CopyCheck, ObjectConflict, ObjectInfo, ObjectMissing


class MemoryStore:
    """An ``ObjectStore`` that lives as long as the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}

    def put(
        self,
        key: str,
        body: bytes,
        *,
        sha256: bytes | None = None,
        after_all: bool = False,  # noqa: ARG002
    ) -> None:
        """See ``ObjectStore.put``.  One copy, so ``after_all`` holds by itself."""
        check_key(key)
        check_body(key, body, sha256)
        check_digest(key, body, sha256)
        with self._lock:
            if self._objects.setdefault(key, bytes(body)) != body:
                raise ObjectConflict(f"object {key} already holds other bytes")

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get``."""
        body = self._find(key)
        if check is not None:
            check(body)
        return body

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get_range``."""
        check_range(key, start, length)
        part = self._find(key)[start : start + length]
        if check is not None:
            check(part)
        return part

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """See ``ObjectStore.list_objects``.  A listing shows one moment, that of its first object."""
        check_prefix(prefix)
        return self._listing(prefix, start_after or "")

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``."""
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def _find(self, key: str) -> bytes:
        check_key(key)
        with self._lock:
            body = self._objects.get(key)
        if body is None:
            raise ObjectMissing(f"no object {key}")
        return body

    def _listing(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        with self._lock:
            found = sorted(
                (key, len(body))
                for key, body in self._objects.items()
                if key.startswith(prefix) and key > start_after
            )
        for key, size_bytes in found:
            yield ObjectInfo(key, size_bytes)
