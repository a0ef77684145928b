"""Object Lock as reports state it: the weakest of all that is needed, and the checkpoint's locked copy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import fix_reports as fix

from pitr.layout import checkpoint_key
from storage.locks import ObjectLock, lock_of
from storage.memory import MemoryStore
from storage.regions import Region
from storage.replicated import ReplicatedStore
from storage.s3_lock import S3Lock, lock_from
from storage.store import StoreUnavailable
from verifiers.audit_log import AuditLog
from verifiers.source_locks import LeastLock, least_lock

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class LockedStore(MemoryStore):
    """Locks what begins with ``prefixes``, each key a day longer than the one before."""

    def __init__(self, *prefixes: str) -> None:
        super().__init__()
        self.prefixes = prefixes
        self.governed: set[str] = set()
        self.is_down = False

    def lock_of(self, key: str) -> ObjectLock | None:
        if self.is_down:
            raise StoreUnavailable("down")
        if not key.startswith(self.prefixes):
            return None
        mode = "GOVERNANCE" if key in self.governed else "COMPLIANCE"
        until = NOW + timedelta(days=len(key))
        return ObjectLock(mode, until, f"s3://bucket/{key}", "v1")  # type: ignore[arg-type]


def test_the_weakest_lock_of_all_is_told() -> None:
    store = LockedStore("a", "b")
    keys = ["aaa", "b", "bb"]
    assert least_lock(store, keys) == LeastLock("COMPLIANCE", NOW + timedelta(days=1))
    store.governed.add("bb")
    assert least_lock(store, keys) == LeastLock("GOVERNANCE", NOW + timedelta(days=1))


def test_where_one_object_has_none_or_was_not_asked_nothing_is_told() -> None:
    store = LockedStore("a")
    assert least_lock(store, ["a", "aa", "c"]) is None
    assert least_lock(store, ["c", "a"]) is None
    assert least_lock(store, []) is None
    store.is_down = True
    assert least_lock(store, ["a"]) is None
    assert least_lock(MemoryStore(), ["a"]) is None


def test_a_put_is_locked_only_below_its_prefixes() -> None:
    lock = S3Lock("COMPLIANCE", 2190, ("log/", "reports/"), now=lambda: NOW)
    wanted = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": NOW + timedelta(days=2190)}
    assert lock.arguments("log/x/entry/1") == wanted
    assert lock.arguments("wal/1") == {}
    assert S3Lock("COMPLIANCE", 1, ()).arguments("log/x") == {}


def test_what_a_store_says_of_a_lock_is_read_strictly() -> None:
    answer = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": NOW, "VersionId": "null"}
    assert lock_from(answer, "s3://b/k") == ObjectLock("GOVERNANCE", NOW, "s3://b/k", None)
    assert lock_from({**answer, "ObjectLockMode": "HOLD"}, "s3://b/k") is None
    assert lock_from({}, "s3://b/k") is None


def test_a_report_names_the_locked_copy_of_its_checkpoint_and_of_no_other() -> None:
    plain = MemoryStore()
    assert (
        fix.run_week(AuditLog(plain, fix.REPOSITORY, fix.VERIFIER), 1).predicate["log"]["object_lock_copy"]
        is None
    )
    store = LockedStore("log/")
    log = AuditLog(store, fix.REPOSITORY, fix.VERIFIER)
    for number in (1, 2):
        said = fix.run_week(log, number).predicate["log"]
        key = checkpoint_key(log.key_id, said["tree_size"])
        assert said["object_lock_copy"] == {"uri": f"s3://bucket/{key}", "version": "v1"}
    store.is_down = True
    assert fix.run_week(log, 3).predicate["log"]["object_lock_copy"] is None


def test_of_several_regions_the_copy_that_is_locked_longest_is_told() -> None:
    locked, down = LockedStore("k"), LockedStore("k")
    down.is_down = True
    regions = [Region("a", MemoryStore()), Region("b", down), Region("c", locked)]
    store = ReplicatedStore(regions, quorum=2)
    found = lock_of(store, "key")
    assert found is not None
    assert found.uri == "s3://bucket/key"
    assert lock_of(store, "other") is None
    store.close()
