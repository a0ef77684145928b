"""Scenario files of drills: TOML, read and checked whole, so that whoever corrects one does it once."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError

from cli.config_mistakes import Mistake, mistakes_refused, unknown_setting
from cli.config_schema import mistake_of
from cli.config_table import Duration, Name, Table
from cli.config_values import read_duration
from cli.errors import ConfigRefused
from verifiers.client_load import CLIENTS_MAX
from verifiers.drill_scenario import (
    AUTO,
    STEPS_MAX,
    Action,
    DrillKind,
    Scenario,
    Step,
    scenario_mistakes,
)

FILE_BYTES_MAX: Final = 256 * 1024
# A run has a deadline, and a scenario is no timetable.
_Pause = Annotated[float, BeforeValidator(read_duration), Field(gt=0, le=86_400, allow_inf_nan=False)]
_Text = Annotated[str, Field(min_length=1, max_length=2000)]
_Sql = Annotated[str, Field(min_length=1, max_length=20_000)]


class _Step(Table):
    name: Name
    deadline: Duration | None = None


class _Note(_Step):
    action: Literal["note"]
    text: _Text


class _Wait(_Step):
    action: Literal["wait"]
    duration: _Pause


class _MarkFailure(_Step):
    action: Literal["mark-failure"]


class _CutRegion(_Step):
    action: Literal["cut-region"]
    region: Name = AUTO


class _Restore(_Step):
    action: Literal["restore"]
    target: _Text = "latest"


class _StartService(_Step):
    action: Literal["start-service"]


class _Load(_Step):
    action: Literal["load"]
    duration: _Pause
    clients: Annotated[int, Field(ge=1, le=CLIENTS_MAX)] = 4
    database: Annotated[str, Field(min_length=1, max_length=63)] = "postgres"
    query: _Sql = "SELECT 1"
    errors_permille: Annotated[int, Field(ge=0, le=1000)] = 0


class _SqlStep(_Step):
    action: Literal["sql"]
    query: _Sql
    database: Annotated[str, Field(min_length=1, max_length=63)] = "postgres"


class _Checks(_Step):
    action: Literal["checks"]


_STEPS: Final = (_Note, _Wait, _MarkFailure, _CutRegion, _Restore, _StartService, _Load, _SqlStep, _Checks)
_AnyStep = Annotated[
    _Note | _Wait | _MarkFailure | _CutRegion | _Restore | _StartService | _Load | _SqlStep | _Checks,
    Field(discriminator="action"),
]


class _File(Table):
    name: Name
    kind: Literal["failover", "full", "disaster"]
    description: Annotated[str, Field(max_length=2000)] = ""
    step: Annotated[list[_AnyStep], Field(min_length=1, max_length=STEPS_MAX)]


_KNOWN: Final = {
    "": tuple(_File.model_fields),
    "step": tuple(sorted({name for step in _STEPS for name in step.model_fields})),
}


def read_scenario(path: Path) -> Scenario:
    """Read and check a file.  Raises ConfigRefused with every mistake found."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigRefused(
            f"the scenario {path} cannot be read",
            detail=error.strerror,
            hint="name a file as in examples/drills, or one of: " + ", ".join(DrillKind),
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise _refusal(path, [f"it has more than {FILE_BYTES_MAX} bytes: not a scenario"])
    try:
        tables = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise _refusal(path, [f"this is not TOML: {error}"]) from error
    found = parse_scenario(tables, hashlib.sha256(content).hexdigest())
    if isinstance(found, Scenario):
        return found
    raise _refusal(path, [f"{one.name}: {one.text}" for one in found])


def parse_scenario(tables: dict[str, Any], sha256: str) -> Scenario | list[Mistake]:
    """Return the scenario, or every mistake in it."""
    try:
        file = _File.model_validate(tables)
    except ValidationError as error:
        return [_mistake(line) for line in error.errors(include_url=False, include_input=False)]
    steps = tuple(_step(one) for one in file.step)
    mistakes = [
        Mistake(("step",) if at is None else ("step", at), text) for at, text in scenario_mistakes(steps)
    ]
    loads = [one for one in steps if one.action is Action.LOAD]
    for at, one in enumerate(steps):
        if one in loads[1:] and (one.clients, one.database, one.query) != (
            loads[0].clients,
            loads[0].database,
            loads[0].query,
        ):
            text = "one load runs all through a drill: its clients, database and query are those of the first"
            mistakes.append(Mistake(("step", at), text))
    if mistakes:
        return mistakes
    return Scenario(file.name, DrillKind(file.kind), steps, file.description, sha256)


def _step(table: Any) -> Step:
    def of(name: str) -> Any:
        return getattr(table, name, None)

    return Step(
        name=table.name,
        action=Action(table.action),
        deadline_s=table.deadline,
        duration_s=of("duration"),
        text=of("text"),
        region=of("region"),
        target=of("target"),
        clients=of("clients"),
        database=of("database"),
        query=of("query"),
        errors_permille_max=of("errors_permille"),
    )


def _mistake(line: Any) -> Mistake:
    """Say a mistake as the configuration's are said; a step's place has no name of its kind."""
    tags = {str(action) for action in Action}
    place = tuple(part for at, part in enumerate(line["loc"]) if not (at == 2 and part in tags))
    if line["type"] == "extra_forbidden":
        return Mistake(place, unknown_setting(place, _KNOWN))
    if line["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return Mistake((*place, "action"), "expected one of " + ", ".join(Action))
    return Mistake(place, mistake_of(line).text)


def _refusal(path: Path, mistakes: Sequence[str]) -> ConfigRefused:
    return mistakes_refused(
        f"the scenario {path}", mistakes, hint="correct it; docs/drills.md tells what a step may be"
    )
