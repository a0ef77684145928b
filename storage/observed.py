"""ObservedStore: tells an observer of every call's kind, size, time and error.  For metrics, and counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from storage.locks import Locking, ObjectLock
from storage.store import CopyCheck, ObjectInfo, ObjectStore, StoreError

Operation = Literal["put", "get", "get_range", "list", "delete", "lock"]


class StoreObserver(Protocol):
    """Gets one call for each call of the store, in the caller's thread; it must be quick and not raise."""

    def observed(
        self, operation: Operation, size_bytes: int, elapsed_s: float, error: StoreError | None
    ) -> None:
        """Count the call.

        ``size_bytes`` were put or read, 0 after an error; a listing counts its lines, and its
        time is that of the store alone, without its consumer's.
        """


class RequestCount:
    """An observer that counts the calls, those that failed as well.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0

    def observed(
        self, operation: Operation, size_bytes: int, elapsed_s: float, error: StoreError | None
    ) -> None:
        """See ``StoreObserver``."""
        del operation, size_bytes, elapsed_s, error
        with self._lock:
            self._calls += 1

    @property
    def calls(self) -> int:
        """How many there were."""
        with self._lock:
            return self._calls


@dataclass(slots=True)
class _Call:
    size_bytes: int = 0


class ObservedStore:
    """An ``ObjectStore`` around another one, which does the work."""

    def __init__(
        self, inner: ObjectStore, observer: StoreObserver, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._inner = inner
        self._observer = observer
        self._clock = clock

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        """See ``ObjectStore.put``."""
        with self._observed("put") as call:
            self._inner.put(key, body, sha256=sha256, after_all=after_all)
            call.size_bytes = len(body)

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get``."""
        with self._observed("get") as call:
            body = self._inner.get(key, check=check)
            call.size_bytes = len(body)
        return body

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get_range``."""
        with self._observed("get_range") as call:
            part = self._inner.get_range(key, start, length, check=check)
            call.size_bytes = len(part)
        return part

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """See ``ObjectStore.list_objects``.  Observed when the listing ends or is dropped."""
        return self._listing(self._inner.list_objects(prefix, start_after=start_after))

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``."""
        with self._observed("delete"):
            self._inner.delete(key)

    def _listing(self, found: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        lines, elapsed_s = 0, 0.0
        failure: StoreError | None = None
        try:
            while True:
                started = self._clock()
                try:
                    line = next(found, None)
                finally:
                    elapsed_s += self._clock() - started
                if line is None:
                    return
                lines += 1
                yield line
        except StoreError as error:
            failure = error
            raise
        finally:
            self._observer.observed("list", lines, elapsed_s, failure)

    @contextmanager
    def _observed(self, operation: Operation) -> Iterator[_Call]:
        call = _Call()
        started = self._clock()
        failure: StoreError | None = None
        try:
            yield call
        except StoreError as error:
            failure = error
            raise
        finally:
            self._observer.observed(operation, call.size_bytes, self._clock() - started, failure)


class _ObservedLocking(ObservedStore):
    """The same around a store that can tell of locks: callers ask a store whether it can."""

    def __init__(self, inner: ObjectStore, locking: Locking, observer: StoreObserver) -> None:
        super().__init__(inner, observer)
        self._locking = locking

    def lock_of(self, key: str) -> ObjectLock | None:
        """See ``Locking.lock_of``."""
        with self._observed("lock"):
            return self._locking.lock_of(key)


def observed_store(store: ObjectStore, observer: StoreObserver) -> ObservedStore:
    """Return a store observed that can do all that it can."""
    if isinstance(store, Locking):
        return _ObservedLocking(store, store, observer)
    return ObservedStore(store, observer)
