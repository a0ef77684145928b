"""Probes of what a region's owner promises: that nobody with this host's credentials can change or delete.

What cannot be asked is a warning, for it is not known to be so.  What is tried leaves no object behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from storage.promises import LockState, Promises, Promising
from storage.regions import Region
from storage.store import StoreError, StoreRefused
from verifiers.base import Finding, Severity

_BODY: Final = b"pitr probe: a store that keeps this one verifies no digests\n"
_POLICY_HINT: Final = "give this host put, get and list only: docs/config-regions.md"
_ASK_HINT: Final = "allow this host to ask, or look there yourself: docs/config-regions.md"


def probe_promises(region: Region, key: str, *, asks_lock: bool = False) -> list[Finding]:
    """Try what must be refused and ask what must be on; ``asks_lock``: our puts want an Object Lock.

    Nothing must have the key with ``-digest`` or ``-delete`` after it.
    """
    if not isinstance(region.store, Promising):
        return [_judge_digest(region, lambda: _keeps_wrong(region, f"{key}-digest")), _no_guard(region)]
    promises = region.store.promises()
    return [
        _judge_digest(region, lambda: promises.takes_wrong_digest(f"{key}-digest")),
        _judge_versions(region, promises),
        _judge_lock(region, promises, asks_lock=asks_lock),
        _judge_delete(region, "delete", "objects", lambda: promises.may_delete(f"{key}-delete")),
        _judge_delete(
            region,
            "delete-version",
            "versions for good",
            lambda: promises.may_delete_versions(f"{key}-delete"),
        ),
    ]


def _keeps_wrong(region: Region, key: str) -> bool:
    try:
        region.store.put(key, _BODY, sha256=bytes(32))
    except StoreRefused:
        return False
    return True


def _no_guard(region: Region) -> Finding:
    text = "a directory is guarded by its rights alone: whoever takes this host can delete what is in it"
    hint = "let enough regions be buckets that this host may not delete from: docs/config-regions.md"
    return Finding(f"region.{region.name}.delete", Severity.WARN, region.name, text, hint)


def _judge_digest(region: Region, takes_wrong: Callable[[], bool]) -> Finding:
    check = f"region.{region.name}.digest"
    try:
        is_wrong = takes_wrong()
    except StoreError as error:
        return _unknown(check, region, "whether digests are verified", error)
    if not is_wrong:
        return Finding(check, Severity.OK, region.name, "a body that is not what its digest says is refused")
    text = "a body was stored that is not what its digest says: what is changed on the way is not seen"
    hint = "use another store, or another profile= in the region's URL"
    return Finding(check, Severity.FAIL, region.name, text, hint)


def _judge_versions(region: Region, promises: Promises) -> Finding:
    check = f"region.{region.name}.versioning"
    try:
        is_on = promises.keeps_versions()
    except StoreError as error:
        return _unknown(check, region, "whether the bucket keeps versions", error)
    if is_on:
        return Finding(check, Severity.OK, region.name, "what is deleted there stays as a version")
    text = "the bucket keeps no versions: what is deleted there is gone"
    return Finding(check, Severity.WARN, region.name, text, "turn its versioning on")


def _judge_lock(region: Region, promises: Promises, *, asks_lock: bool) -> Finding:
    check = f"region.{region.name}.lock"
    try:
        state: LockState = promises.lock_state()
    except StoreError as error:
        return _unknown(check, region, "whether the bucket has Object Lock", error)
    if state.is_on and state.by_default is not None:
        return Finding(check, Severity.OK, region.name, f"objects are locked: {state.by_default}")
    hint = "make a bucket with Object Lock and a default retention: docs/config-regions.md"
    if state.is_on:
        text = "the bucket has Object Lock, and no default retention: backups and WAL are not locked"
        return Finding(check, Severity.WARN, region.name, text, hint)
    if asks_lock:
        text = "the region's url asks for a lock, and the bucket has no Object Lock: such puts fail"
        return Finding(check, Severity.FAIL, region.name, text, hint)
    return Finding(check, Severity.WARN, region.name, "the bucket has no Object Lock", hint)


def _judge_delete(region: Region, name: str, what: str, may: Callable[[], bool]) -> Finding:
    check = f"region.{region.name}.{name}"
    try:
        is_allowed = may()
    except StoreError as error:
        return _unknown(check, region, f"whether this host may delete {what}", error)
    if not is_allowed:
        return Finding(check, Severity.OK, region.name, f"this host's credentials may not delete {what}")
    text = f"this host's credentials may delete {what}: whoever takes the host can, too"
    return Finding(check, Severity.WARN, region.name, text, _POLICY_HINT)


def _unknown(check: str, region: Region, what: str, error: StoreError) -> Finding:
    return Finding(check, Severity.WARN, region.name, f"it is not known {what}: {error}", _ASK_HINT)
