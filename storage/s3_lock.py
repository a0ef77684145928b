"""Object Lock in S3: what a put asks for, and what an object has.  Pure.

A bucket's own default retention, where it has one, covers every object and is asked for by nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from storage.locks import LockMode, ObjectLock

# A hundred years: a mistyped number must not outlive everybody.
LOCK_DAYS_MAX: Final = 36_500


@dataclass(frozen=True, slots=True)
class S3Lock:
    """How long the objects whose keys begin with one of ``prefixes`` are locked when they are put."""

    mode: LockMode
    days: int
    prefixes: tuple[str, ...]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def arguments(self, key: str) -> dict[str, object]:
        """Return what a put of ``key`` says of it; nothing for other keys."""
        if not key.startswith(self.prefixes):
            return {}
        until = self.now() + timedelta(days=self.days)
        return {"ObjectLockMode": self.mode, "ObjectLockRetainUntilDate": until}


def lock_from(answer: Mapping[str, Any], uri: str) -> ObjectLock | None:
    """Return the lock that the answer to a HEAD tells of; None if it tells of none."""
    mode, until = answer.get("ObjectLockMode"), answer.get("ObjectLockRetainUntilDate")
    if mode not in ("GOVERNANCE", "COMPLIANCE") or not isinstance(until, datetime):
        return None
    version = answer.get("VersionId")
    return ObjectLock(mode, until.astimezone(UTC), uri, None if version in (None, "null") else str(version))
