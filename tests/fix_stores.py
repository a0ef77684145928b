"""Stores for tests: FaultyStore, which fails as it is told to, without sleeping."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from storage.store import (
    CopyCheck,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

OPERATIONS = ("put", "get", "list", "delete")
# Long enough for any machine; a test that waits this long has failed.
GATE_TIMEOUT_S = 60.0


@dataclass
class Gate:
    """A call that is held: ``entered`` is set when it arrives, and it goes on after ``release``."""

    entered: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let the held calls go on."""
        self.opened.set()


class FaultyStore:
    """An ``ObjectStore`` around another one, with faults that a test switches on and off."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self._lock = threading.Lock()
        self._faults: dict[str, tuple[StoreError, int | None]] = {}
        self._gates: dict[tuple[str, str | None], Gate] = {}
        self._damaged: set[str] = set()
        self._missing: set[str] = set()
        self.calls: list[tuple[str, str]] = []

    def go_down(self) -> None:
        """Answer every call with StoreUnavailable until ``heal``."""
        self.fail(StoreUnavailable("region is down"))

    def refuse(self) -> None:
        """Answer every call with StoreRefused until ``heal``."""
        self.fail(StoreRefused("access denied"))

    def fail(self, error: StoreError, *operations: str, times: int | None = None) -> None:
        """Raise ``error`` from the operations (default: all), ``times`` times (default: until ``heal``)."""
        with self._lock:
            for operation in operations or OPERATIONS:
                self._faults[operation] = (error, times)

    def hold(self, operation: str, key: str | None = None) -> Gate:
        """Hold the calls of ``operation`` (for ``key``, or all) that begin from now on, before they act."""
        with self._lock:
            return self._gates.setdefault((operation, key), Gate())

    def hold_next(self, operation: str) -> Gate:
        """Hold the calls of ``operation`` that begin from now on at a new gate."""
        with self._lock:
            gate = self._gates[(operation, None)] = Gate()
            return gate

    def damage(self, key: str) -> None:
        """Flip a bit in what is read of ``key``."""
        with self._lock:
            self._damaged.add(key)

    def lose(self, key: str) -> None:
        """Answer reads of ``key`` with ObjectMissing."""
        with self._lock:
            self._missing.add(key)

    def heal(self) -> None:
        """Switch every fault off and release what is held."""
        with self._lock:
            self._faults.clear()
            self._damaged.clear()
            self._missing.clear()
            gates = list(self._gates.values())
            self._gates.clear()
        for gate in gates:
            gate.release()

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        self._meet("put", key)
        self.inner.put(key, body, sha256=sha256, after_all=after_all)

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        self._meet("get", key)
        return self._read(key, self.inner.get(key), check)

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        self._meet("get", key)
        return self._read(key, self.inner.get_range(key, start, length), check)

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        self._meet("list", prefix)
        for found in self.inner.list_objects(prefix, start_after=start_after):
            self._meet("list-next", found.key)
            yield found

    def delete(self, key: str) -> None:
        self._meet("delete", key)
        self.inner.delete(key)

    def _meet(self, operation: str, key: str) -> None:
        with self._lock:
            self.calls.append((operation, key))
            gate = self._gates.get((operation, key)) or self._gates.get((operation, None))
        if gate is not None:
            gate.entered.set()
            if not gate.opened.wait(GATE_TIMEOUT_S):
                raise AssertionError(f"nobody released {operation} {key}")
        with self._lock:
            fault = self._faults.get(operation)
            if fault is None:
                return
            error, times = fault
            if times is not None:
                if times <= 1:
                    del self._faults[operation]
                else:
                    self._faults[operation] = (error, times - 1)
        raise error

    def _read(self, key: str, body: bytes, check: CopyCheck | None) -> bytes:
        with self._lock:
            missing, damaged = key in self._missing, key in self._damaged
        if missing:
            raise ObjectMissing(f"no object {key}")
        if damaged:
            body = bytes([body[0] ^ 1]) + body[1:] if body else b"\0"
        if check is not None:
            check(body)
        return body
