"""Targets read back as they were written, and no text makes the grammar do anything but read or refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pitr.errors import TargetRefused
from pitr.recovery import XID_MAX, XID_MIN, RecoveryTarget, local_text
from pitr.targets import parse_target
from pitr.wal.lsn import LSN

_NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
_ZONES = st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "UTC"])
_PAST = st.datetimes(datetime(2000, 1, 1), datetime(2026, 11, 23, 14, 30), timezones=st.just(UTC))  # noqa: DTZ001
_TARGETS = st.one_of(
    st.sampled_from([RecoveryTarget("latest"), RecoveryTarget("immediate")]),
    st.builds(lambda n: RecoveryTarget("lsn", lsn=LSN(n)), st.integers(1, 2**64 - 1)),
    st.builds(lambda n: RecoveryTarget("xid", xid=n), st.integers(XID_MIN, XID_MAX)),
    st.builds(lambda at: RecoveryTarget("time", instant=at), _PAST),
    st.builds(
        lambda text: RecoveryTarget("name", name=text),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=63),
    ),
)


@given(_TARGETS)
def test_a_target_reads_back_as_it_was_written(target: RecoveryTarget) -> None:
    assert parse_target(str(target), now=_NOW) == target


@given(_PAST, _ZONES)
def test_a_local_time_with_its_offset_reads_back_in_every_zone(at: datetime, zone: str) -> None:
    text = local_text(at, zone).removesuffix(f" {zone}")
    if at.astimezone(ZoneInfo(zone)).utcoffset().total_seconds() % 60 == 0:
        assert parse_target(text, now=_NOW).instant == at


@given(_PAST, _ZONES)
def test_a_local_time_with_its_zone_reads_back_or_is_refused_where_clocks_change(
    at: datetime, zone: str
) -> None:
    wall = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    both = {wall.replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC) for fold in (0, 1)}
    text = f"{wall.isoformat(sep=' ')} {zone}"
    if len(both) == 1:
        assert parse_target(text, now=_NOW).instant == at
    else:
        with pytest.raises(TargetRefused, match="twice"):
            parse_target(text, now=_NOW)


@given(
    st.integers(0, 99999),
    st.sampled_from([("m", 60), ("minutes", 60), ("h", 3600), ("s", 1), ("days", 86400)]),
)
def test_a_duration_is_exact(amount: int, unit: tuple[str, int]) -> None:
    name, seconds = unit
    at = _NOW - timedelta(seconds=amount * seconds)
    if at.year >= 2000:
        assert parse_target(f"{amount} {name} ago", now=_NOW, zone="Europe/Berlin").instant == at


@given(st.one_of(st.text(max_size=40), st.text("0123456789:-+/ TZagomhdnxidls.", max_size=30)))
@example("1700000000")
@example("2026-11-23T14:05:00+99:99")
@example("9999-12-31T23:59:59.999999-12:00")
@example("9999999w ago")
def test_any_text_is_read_or_refused_and_never_lies_in_the_future(text: str) -> None:
    for zone in (None, "America/St_Johns"):
        try:
            target = parse_target(text, now=_NOW, zone=zone, local_zone="Europe/Berlin")
        except TargetRefused:
            continue
        assert target.instant is None or target.instant <= _NOW
        assert parse_target(str(target), now=_NOW) == target
