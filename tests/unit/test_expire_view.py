"""What an expiry plan is said to free."""

from __future__ import annotations

from datetime import timedelta

from fix_expiry import ExpiryHouse

from cli.expire_view import freed_bytes
from pitr.layout import timeline_prefix
from pitr.retention import ExpiryPlan, plan_expiry
from pitr.wal.timeline import TimelineId

WINDOW = timedelta(hours=12)


def _plan(house: ExpiryHouse, window: timedelta) -> ExpiryPlan:
    survey, _, _ = house.survey()
    return plan_expiry(survey, window=window, minimum_full_backups=1, now=house.now)


def test_a_strange_key_among_the_wal_hides_nothing_of_what_is_freed() -> None:
    house = ExpiryHouse()
    plan = _plan(house, WINDOW)
    freed = freed_bytes(plan, house.regions())
    assert len(set(freed.values())) == 1
    size_bytes = freed["us"]
    assert size_bytes is not None
    assert size_bytes > 200 * len(plan.expired)

    segment = plan.wal[0].last
    prefix = timeline_prefix(house.archive, TimelineId(1))
    house.stores["us"].put(f"{prefix}{segment}/strange", b"?" * 99)
    assert freed_bytes(plan, house.regions()) == freed


def test_where_nothing_goes_nothing_is_listed() -> None:
    house = ExpiryHouse()
    plan = _plan(house, timedelta(days=35))
    assert plan.is_empty
    assert freed_bytes(plan, house.regions()) == {}
