"""What the doctor says of the disk that holds ``pg_wal``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.disk_forecast import DropPolicy
from pitr.postgres.slot_watch import DiskSpace
from verifiers.base import Severity
from verifiers.disk_probes import WalDisk, judge_unseen_disk, judge_wal_disk

GIB = 1 << 30
KEEP, DROP = DropPolicy(), DropPolicy(drops=True)


@pytest.mark.parametrize(
    ("free", "limit", "policy", "severity", "says"),
    [
        (
            60,
            None,
            KEEP,
            Severity.WARN,
            "nothing bounds the slot; at 1.0 MiB/s of WAL, as of late, the room lasts 17 h",
        ),
        (60, None, KEEP, Severity.WARN, "max_slot_wal_keep_size = '35GB'"),
        (10, None, KEEP, Severity.WARN, "max_slot_wal_keep_size = '5GB'"),
        (60, 80, KEEP, Severity.WARN, "more than there is room for"),
        (60, 40, KEEP, Severity.OK, "an outage within 40.0 GiB lasts 11 h"),
        (60, None, DROP, Severity.OK, "an outage within 59.0 GiB"),
    ],
)
def test_the_slots_bound_is_judged_by_the_disk(
    free: int, limit: int | None, policy: DropPolicy, severity: Severity, says: str
) -> None:
    disk = WalDisk(
        DiskSpace(free * GIB, 100 * GIB), 0, None if limit is None else limit * GIB, float(1 << 20)
    )
    found = judge_wal_disk(disk, policy)
    assert found.severity is severity
    assert says in f"{found.message} {found.hint}"


def test_a_policy_for_a_disk_that_is_not_seen_is_warned_of() -> None:
    assert judge_unseen_disk(KEEP) == []
    (found,) = judge_unseen_disk(DROP)
    assert found.severity is Severity.WARN
    assert "has no effect" in found.message


def test_without_a_rate_nothing_is_said_of_time() -> None:
    assert "lasts" not in judge_wal_disk(WalDisk(DiskSpace(GIB, GIB), 0, None, None), KEEP).message


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45), st.integers(0, 1 << 40))
def test_the_advice_leaves_room_where_there_is_any(free: int, used: int, kept: int) -> None:
    disk = WalDisk(DiskSpace(free, free + used), kept, None, None)
    assert disk.advised_bytes >= GIB
    assert disk.advised_bytes <= max(GIB, disk.room_bytes)
