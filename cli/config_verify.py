"""The table [verify] of the configuration: restores that are verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from cli.config_table import Duration, Name, Table
from cli.config_values import read_duration, read_duration_or_never
from cli.verify_settings import DAY_S, KEY_NAME, WEEK_S, DrillSettings, VerifySettings

Words = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]


def read_objective(value: object) -> float | None:
    """Read a duration, or "none"."""
    if value == "none":
        return None
    duration_s = read_duration(value)
    if not 0.001 <= duration_s <= 366 * 86_400:
        raise ValueError("expected 'none', or at least 1ms and at most 366d")
    return duration_s


Objective = Annotated[float | None, BeforeValidator(read_objective)]


class DrillsTable(Table):
    """The table [verify.drills]."""

    components: Annotated[float | None, BeforeValidator(read_duration_or_never)] = DAY_S
    failover: Annotated[float | None, BeforeValidator(read_duration_or_never)] = None
    full: Annotated[float | None, BeforeValidator(read_duration_or_never)] = None
    disaster: Annotated[float | None, BeforeValidator(read_duration_or_never)] = None
    failover_scenario: str | None = None
    full_scenario: str | None = None
    disaster_scenario: str | None = None
    region: Name | None = None
    primary_region: Name | None = None
    clients: Annotated[int, Field(ge=1, le=64)] = 4
    load: Duration = 30.0
    probe_production: bool = False


class VerifyTable(Table):
    """As it stands in the file."""

    identity_file: str
    key_file: str = KEY_NAME
    scratch_dir: str | None = None
    reports_dir: str | None = None
    checks_dir: str | None = None
    # One union member at a time would give two messages for one mistake.
    every: Annotated[float | None, BeforeValidator(read_duration_or_never)] = WEEK_S
    target: Literal["latest", "random"] = "random"
    deadline: Duration = 43_200.0
    rto: Objective = 300.0
    rpo: Objective = 60.0
    organisation: Words = ""
    system: Words = ""
    asset_id: Words | None = None
    criticality_tier: Words | None = None
    data_classes: Annotated[list[Annotated[Words, Field(min_length=1)]], Field(max_length=50)] = Field(
        default_factory=list
    )
    preload_libraries: Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.$-]{1,100}$")]], Field(max_length=50)
    ] = Field(default_factory=list)
    superuser: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    network: Literal["none", "host"] = "none"
    owner: Words = ""
    due: Duration = 14 * 86_400.0
    drills: DrillsTable = Field(default_factory=DrillsTable)
    consolidate: bool = False
    marker: Annotated[str, Field(min_length=1, max_length=4000)] | None = None
    marker_database: Annotated[str, Field(min_length=1, max_length=63)] = "postgres"
    marker_every: Duration = 60.0


def verify_settings(
    table: VerifyTable | None, base: Path, state_dir: Path, cluster: str
) -> VerifySettings | None:
    """Return the settings; None where the file has no such table."""
    if table is None:
        return None

    def path(text: str | None) -> Path | None:
        if text is None:
            return None
        found = Path(text).expanduser()
        return found if found.is_absolute() else base / found

    work_dir = state_dir / "verify"
    return VerifySettings(
        work_dir=work_dir,
        scratch_dir=path(table.scratch_dir) or work_dir / "scratch",
        key_file=path(table.key_file) or base / KEY_NAME,
        identity_file=path(table.identity_file),
        reports_dir=path(table.reports_dir),
        checks_dir=path(table.checks_dir),
        every_s=table.every,
        target=table.target,
        deadline_s=table.deadline,
        rto_s=table.rto,
        rpo_s=table.rpo,
        organisation=table.organisation,
        system=table.system or cluster,
        asset_id=table.asset_id,
        criticality_tier=table.criticality_tier,
        data_classes=tuple(table.data_classes),
        preload_libraries=tuple(table.preload_libraries),
        superuser=table.superuser,
        network=table.network,
        owner=table.owner,
        due_s=table.due,
        drills=DrillSettings(
            every_s={
                "components": table.drills.components,
                "failover": table.drills.failover,
                "full": table.drills.full,
                "disaster": table.drills.disaster,
            },
            scenarios={
                kind: found
                for kind in ("failover", "full", "disaster")
                if (found := path(getattr(table.drills, f"{kind}_scenario"))) is not None
            },
            region=table.drills.region,
            primary_region=table.drills.primary_region,
            clients=table.drills.clients,
            load_s=table.drills.load,
            probes_production=table.drills.probe_production,
        ),
        consolidate=table.consolidate,
        marker=table.marker,
        marker_database=table.marker_database,
        marker_every_s=table.marker_every,
    )
