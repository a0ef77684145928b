"""What a report says of an Object Lock that was asked for: nothing where it holds, else why it does not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cli.verify_limits import lock_limits
from storage.locks import ObjectLock
from storage.memory import MemoryStore
from storage.regions import Region
from storage.store import StoreError, StoreUnavailable

KEY = "log/0123456789abcdef/checkpoint/7ffffffffffffffe"
LOCK = ObjectLock("COMPLIANCE", datetime(2027, 1, 1, tzinfo=UTC), "s3://b/key", "1")


class LockedStore(MemoryStore):
    def __init__(self, answer: ObjectLock | StoreError | None) -> None:
        super().__init__()
        self.answer = answer

    def lock_of(self, key: str) -> ObjectLock | None:
        self.get(key)
        if isinstance(self.answer, StoreError):
            raise self.answer
        return self.answer


def limits(store: MemoryStore) -> list[str]:
    return lock_limits([Region("ap", store)], KEY)


def held(answer: ObjectLock | StoreError | None) -> MemoryStore:
    store = LockedStore(answer)
    store.put(KEY, b"a checkpoint")
    return store


def test_of_a_lock_that_holds_nothing_is_said() -> None:
    assert limits(held(LOCK)) == []


@pytest.mark.parametrize(
    ("store", "why"),
    [
        (held(None), "no lock of it is told"),
        (LockedStore(LOCK), "it is not there (yet)"),
        (held(StoreUnavailable("the server is busy")), "it cannot be asked for: the server is busy"),
        (MemoryStore(), "no lock of it is told"),
    ],
)
def test_why_a_lock_does_not_hold_is_said(store: MemoryStore, why: str) -> None:
    (said,) = limits(store)
    assert said.startswith("the url of region ap asks for an Object Lock")
    assert said.endswith(why)
