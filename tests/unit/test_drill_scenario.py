"""Scenarios of drills: what a file may say, and that all that is wrong is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.drill_file import parse_scenario, read_scenario
from cli.errors import ConfigRefused
from verifiers.drill_scenario import Action, DrillKind, Scenario, built_in, scenario_mistakes

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "drills").glob("*.toml"))
ORDER = ["mark-failure", "cut-region", "restore", "start-service", "load", "sql", "checks", "note"]
MORE: dict[str, dict[str, Any]] = {
    "load": {"duration": "5s"},
    "sql": {"query": "SELECT 1 WHERE false"},
    "note": {"text": "done"},
    "wait": {"duration": "1s"},
}


def tables(*actions: str, **more: Any) -> dict[str, Any]:
    steps = [{"name": f"s{at}", "action": one, **MORE.get(one, {})} for at, one in enumerate(actions)]
    return {"name": "mine", "kind": "full", "step": steps, **more}


def mistakes(found: dict[str, Any]) -> dict[str, str]:
    answer = parse_scenario(found, "0" * 64)
    assert isinstance(answer, list), "it was to be refused"
    return {one.name: one.text for one in answer}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_shipped_scenarios_are_good(path: Path) -> None:
    assert read_scenario(path).name == path.stem


def test_four_scenarios_are_shipped() -> None:
    assert [path.stem for path in EXAMPLES] == ["node-loss", "primary-loss", "ransomware", "region-loss"]


def test_a_file_becomes_steps_with_their_deadlines() -> None:
    found = tables(*ORDER)
    found["step"][2] |= {"deadline": "4m", "target": "lsn:0/3000000"}
    scenario = parse_scenario(found, "ab" * 32)
    assert isinstance(scenario, Scenario)
    assert [str(one.action) for one in scenario.steps] == ORDER
    restore = scenario.step(Action.RESTORE)
    assert restore is not None
    assert (restore.deadline_s, restore.target) == (240.0, "lsn:0/3000000")
    assert scenario.sha256 == "ab" * 32


def test_every_mistake_is_told_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        'name = "x"\nkind = "ful"\nstepp = 1\n'
        '[[step]]\nname = "a"\naction = "wait"\n'
        '[[step]]\nname = "b"\naction = "load"\nduration = "5s"\nclints = 3\n'
        '[[step]]\nname = "c"\naction = "drop-database"\n'
    )
    with pytest.raises(ConfigRefused) as refused:
        read_scenario(path)
    detail = refused.value.detail or ""
    assert "has 5 mistakes" in refused.value.message
    for said in (
        "kind: expected 'failover', 'full' or 'disaster'",
        "stepp: there is no such setting; did you mean 'step'?",
        "step[0].duration: this is required",
        "step[1].clints: there is no such setting; did you mean 'clients'?",
        "step[2].action: expected one of wait, note, mark-failure",
    ):
        assert said in detail


@pytest.mark.parametrize(
    ("actions", "place", "text"),
    [
        (["restore", "start-service", "checks"], "step", "mark-failure is wanted once, and is there 0"),
        (["restore", "mark-failure", "start-service", "checks"], "step[1]", "the failure comes before"),
        (
            ["mark-failure", "restore", "wait", "start-service", "checks"],
            "step[3]",
            "right after the restore",
        ),
        (["mark-failure", "restore", "start-service", "cut-region", "checks"], "step[3]", "cut off before"),
        (["mark-failure", "load", "restore", "start-service", "checks"], "step[1]", "load comes after"),
        (["mark-failure", "restore", "start-service", "checks", "sql"], "step[4]", "before the checks"),
        (["mark-failure", "checks", "restore", "start-service"], "step[1]", "the checks come after"),
        (["mark-failure", "restore", "start-service", "checks", "wait"], "step[4]", "nothing to wait for"),
        (["cut-region", "cut-region", *ORDER[:1], *ORDER[2:]], "step", "only one region"),
    ],
)
def test_steps_in_an_impossible_order_are_refused(actions: list[str], place: str, text: str) -> None:
    assert text in mistakes(tables(*actions))[place]


def test_a_name_given_twice_is_refused() -> None:
    found = tables(*ORDER)
    found["step"][5]["name"] = "s4"
    assert "given twice" in mistakes(found)["step[5]"]


def test_a_second_load_step_cannot_change_the_load() -> None:
    found = tables("mark-failure", "restore", "start-service", "load", "load", "checks")
    found["step"][4]["clients"] = 9
    assert "one load runs all through a drill" in mistakes(found)["step[4]"]


@pytest.mark.parametrize("kind", [DrillKind.FAILOVER, DrillKind.FULL, DrillKind.DISASTER])
def test_the_built_in_scenarios_are_good(kind: DrillKind) -> None:
    scenario = built_in(kind, clients=2, load_s=3.0)
    assert list(scenario_mistakes(scenario.steps)) == []
    assert (scenario.step(Action.CUT_REGION) is None) == (kind is DrillKind.FULL)
    assert built_in(kind, clients=3, load_s=3.0).sha256 != scenario.sha256
