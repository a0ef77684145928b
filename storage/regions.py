"""Regions: the named stores that hold the copies, their health, and what happens to them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from storage.copy_faults import CopyFault
from storage.store import ObjectStore

# A region that failed is asked last for this long: long enough to spare it a storm,
# short enough that a passing fault costs one slow minute at most.
COOLDOWN_S = 15.0
_LATENCY_WEIGHT = 0.2
# What a status shows; more would push the rest off the screen.
BAD_COPIES_NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class Region:
    """One place that holds copies.  ``name`` is the operator's, and keys the repair queue."""

    name: str
    store: ObjectStore


class StoreEventKind(StrEnum):
    """What an operator or a metric may want to know; the store itself has already acted on it."""

    REGION_FAILED = "region-failed"
    REGION_RECOVERED = "region-recovered"
    COPY_MISSING = "copy-missing"
    COPY_DAMAGED = "copy-damaged"
    COPY_DIFFERS = "copy-differs"
    COPY_CONFLICTS = "copy-conflicts"
    COPY_IN_THE_WAY = "copy-in-the-way"
    COPY_REPAIRED = "copy-repaired"
    REPAIR_DROPPED = "repair-dropped"


@dataclass(frozen=True, slots=True)
class StoreEvent:
    """Something that happened to one region, and to one copy unless ``key`` is None."""

    kind: StoreEventKind
    region: str
    key: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """How one region does.  ``pending_repairs`` include the ``stuck_repairs`` that a person must look at.

    ``bad_copies`` are there and are not what they must be; the oldest BAD_COPIES_NAMED_MAX by name.
    """

    name: str
    is_healthy: bool
    pending_repairs: int
    stuck_repairs: int
    oldest_pending_at: datetime | None
    last_error: str | None
    put_latency_s: float | None
    bad_copies: int = 0
    bad_copies_named: tuple[CopyFault, ...] = ()


class RegionHealth:
    """Whether a region answered of late.  Thread-safe; only a hint, never a reason to give up."""

    def __init__(self, clock: Callable[[], float], cooldown_s: float = COOLDOWN_S) -> None:
        self._clock = clock
        self._cooldown_s = cooldown_s
        self._lock = threading.Lock()
        self._failed_at: float | None = None
        self._last_error: str | None = None
        self._latency_s: float | None = None

    def succeeded(self, put_latency_s: float | None = None) -> bool:
        """Record an answer; True if the region had failed before."""
        with self._lock:
            had_failed = self._failed_at is not None
            self._failed_at = None
            if put_latency_s is not None:
                before = put_latency_s if self._latency_s is None else self._latency_s
                self._latency_s = before + _LATENCY_WEIGHT * (put_latency_s - before)
            return had_failed

    def failed(self, error: Exception) -> bool:
        """Record a failure; True if the region had not failed before."""
        with self._lock:
            was_well = self._failed_at is None
            self._failed_at = self._clock()
            self._last_error = str(error)
            return was_well

    def forgive(self) -> None:
        """End the cool-down, so that the region is asked again at once."""
        with self._lock:
            if self._failed_at is not None:
                self._failed_at = self._clock() - self._cooldown_s

    @property
    def is_cooling(self) -> bool:
        """Whether the region failed so recently that it should be asked last."""
        with self._lock:
            return self._failed_at is not None and self._clock() < self._failed_at + self._cooldown_s

    @property
    def is_healthy(self) -> bool:
        """Whether the last answer was a good one."""
        with self._lock:
            return self._failed_at is None

    @property
    def last_error(self) -> str | None:
        """The text of the last failure, also after the region has recovered."""
        with self._lock:
            return self._last_error

    @property
    def put_latency_s(self) -> float | None:
        """The moving average of the time of a put; None before the first."""
        with self._lock:
            return self._latency_s
