"""What a drill is about: which region is lost, where the restore goes to, and what contradicts itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cli.context import App
from cli.drill_choice import DrillChoices, choose_cut, choose_target
from cli.errors import UsageRefused
from cli.verify_settings import DrillSettings, VerifySettings, default_verify
from verifiers.drill_scenario import BEFORE_CORRUPTION, Action, DrillKind, Scenario, Step, built_in

REGIONS = ("eu", "us", "ap")


def config(**drills: str) -> VerifySettings:
    return replace(
        default_verify(Path("/var"), Path("/etc"), "clinic"),
        drills=DrillSettings(**drills),  # type: ignore[arg-type]
    )


def choices(kind: DrillKind, **more: str) -> DrillChoices:
    return DrillChoices(kind, built_in(kind, clients=1, load_s=1.0), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "typed", "drills", "lost"),
    [
        (DrillKind.FAILOVER, {}, {}, "eu"),
        (DrillKind.FAILOVER, {}, {"region": "ap", "primary_region": "us"}, "ap"),
        (DrillKind.FAILOVER, {"without_region": "us"}, {"region": "ap"}, "us"),
        (DrillKind.DISASTER, {}, {}, "eu"),
        (DrillKind.DISASTER, {}, {"region": "ap", "primary_region": "us"}, "us"),
        (DrillKind.FULL, {}, {"region": "ap"}, None),
    ],
)
def test_the_region_that_is_lost(
    kind: DrillKind, typed: dict[str, str], drills: dict[str, str], lost: str | None
) -> None:
    assert choose_cut(choices(kind, **typed), config(**drills), [], REGIONS) == lost


def test_a_region_that_is_unknown_the_only_one_or_not_lost_at_all_is_refused() -> None:
    for typed, kind, regions, said in (
        ("nosuch", DrillKind.FAILOVER, REGIONS, "no region 'nosuch'"),
        ("eu", DrillKind.FAILOVER, ("eu",), "the only region"),
        ("eu", DrillKind.FULL, REGIONS, "loses no region"),
    ):
        with pytest.raises(UsageRefused, match=said):
            choose_cut(choices(kind, without_region=typed), config(), [], regions)


def attack(**more: str) -> DrillChoices:
    steps = (Step("restore", Action.RESTORE, target=BEFORE_CORRUPTION),)
    return DrillChoices(DrillKind.FULL, Scenario("attack", DrillKind.FULL, steps), **more)  # type: ignore[arg-type]


def test_before_a_corruption_that_is_named_the_moment_itself_is_left_out() -> None:
    app = App(zone="UTC")
    found = choose_target(app, attack(corrupted_at="2026-11-23T14:05:00Z"), [])
    assert (found.target.kind, found.target.is_inclusive, found.is_attack) == ("time", False, True)
    assert found.clean_point is not None
    with pytest.raises(UsageRefused, match="nobody knows when it was"):
        choose_target(app, attack(), [])
    with pytest.raises(UsageRefused, match="exclude each other"):
        choose_target(app, attack(target="latest"), [])
    with pytest.raises(UsageRefused, match="no moment before a corruption"):
        choose_target(app, choices(DrillKind.FULL, corrupted_at="2026-11-23T14:05:00Z"), [])


def test_what_is_typed_comes_before_the_scenario() -> None:
    app = App(zone="UTC")
    assert choose_target(app, choices(DrillKind.FULL), []).target.kind == "latest"
    assert choose_target(app, choices(DrillKind.FULL, target="lsn:0/3000000"), []).target.kind == "lsn"
