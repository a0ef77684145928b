"""Which regions a plan says that it reads from."""

from __future__ import annotations

import io

from cli.output import Output
from cli.plan_sources import show_regions
from cli.region_standing import RegionStanding, Standing

HOLDS = [RegionStanding(name, Standing.HOLDS) for name in ("eu", "us", "ap")]


def shown(standings: list[RegionStanding], silent: tuple[str, ...]) -> tuple[str, list[dict[str, object]]]:
    stdout = io.StringIO()
    fields = show_regions(Output(stdout=stdout, stderr=io.StringIO()), standings, silent)
    return stdout.getvalue(), fields


def test_the_regions_are_named_in_the_order_in_which_they_are_read() -> None:
    text, fields = shown(HOLDS, ())
    assert text == "regions   eu, us, ap, the next where one lacks an object\n"
    assert [one["is_read"] for one in fields] == [True, True, True]


def test_a_region_that_went_silent_or_never_counted_is_named_as_such() -> None:
    empty = RegionStanding("old", Standing.EMPTY)
    text, fields = shown([*HOLDS[:2], empty], ("us",))
    assert text == "regions   eu; us does not answer; old holds no repository\n"
    assert [(one["region"], one["is_read"]) for one in fields] == [
        ("eu", True),
        ("us", False),
        ("old", False),
    ]
