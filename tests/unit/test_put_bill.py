"""The forecast of what puts cost."""

from __future__ import annotations

import pytest

from cli.put_bill import PutBill


def test_a_month_at_ten_puts_a_second_into_three_regions() -> None:
    bill = PutBill(price_per_1000=0.005, regions=3)
    bill.note(0.0, 0)
    assert bill.per_month(30.0, 300) is None
    assert bill.puts_per_s(60.0, 600) == pytest.approx(10)
    assert bill.per_month(60.0, 600) == pytest.approx(388.8)


def test_it_follows_the_load_of_the_last_hour() -> None:
    bill = PutBill(price_per_1000=0.005, regions=1)
    for second in range(7201):
        bill.note(float(second), min(second, 3600) * 10)
    assert bill.puts_per_s(7200.0, 36_000) == pytest.approx(0, abs=0.2)
