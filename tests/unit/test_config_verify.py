"""The table [verify]: what it may say, and what holds where nothing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fix_config import BASE, least_tables

from cli.config_schema import check_tables
from cli.settings import Settings
from cli.verify_facts import policy_of
from cli.verify_settings import default_verify


def tables(verify: dict[str, Any] | None) -> dict[str, Any]:
    found = least_tables()
    return found if verify is None else {**found, "verify": verify}


def settings_of(verify: dict[str, Any] | None) -> Settings:
    found = check_tables(tables(verify), base=BASE, path=BASE / "pitr.toml")
    assert isinstance(found, Settings), found
    return found


def test_without_the_table_nothing_is_verified_by_itself() -> None:
    settings = settings_of(None)
    assert settings.verify is None
    fallback = default_verify(settings.daemon.state_dir, BASE, "clinic")
    assert (fallback.every_s, fallback.key_file) == (None, BASE / "verifier.key")


def test_an_identity_is_all_that_a_weekly_verification_needs() -> None:
    found = settings_of({"identity_file": "/vault/identity.toml"}).verify
    assert found is not None
    assert found.identity_file == Path("/vault/identity.toml")
    assert (found.every_s, found.target, found.network) == (7 * 86_400.0, "random", "none")
    assert (found.rto_s, found.rpo_s) == (300.0, 60.0)
    assert found.scratch_dir == BASE / "state" / "verify" / "scratch"
    assert found.public_key_file == BASE / "verifier.pub.pem"
    assert found.system == "clinic"


def test_objectives_schedule_and_places_are_as_they_are_written() -> None:
    found = settings_of(
        {
            "identity_file": "id.toml",
            "every": "never",
            "rto": "15m",
            "rpo": "none",
            "scratch_dir": "/big/scratch",
            "checks_dir": "checks",
            "preload_libraries": ["pg_stat_statements"],
        }
    ).verify
    assert found is not None
    assert (found.every_s, found.rto_s, found.rpo_s) == (None, 900.0, None)
    assert (found.scratch_dir, found.checks_dir) == (Path("/big/scratch"), BASE / "checks")
    assert found.preload_libraries == ("pg_stat_statements",)


def test_a_marker_and_consolidation_are_off_unless_they_are_asked_for() -> None:
    found = settings_of({"identity_file": "id.toml"}).verify
    assert found is not None
    assert (found.marker, found.consolidate) == (None, False)
    query = "SELECT max(at) FROM beats"
    found = settings_of(
        {"identity_file": "id.toml", "marker": query, "marker_every": "5s", "consolidate": True}
    ).verify
    assert found is not None
    assert (found.marker, found.marker_database, found.marker_every_s) == (query, "postgres", 5.0)
    assert found.consolidate is True


def test_a_policy_is_another_when_something_else_is_asked_of_a_restore(tmp_path: Path) -> None:
    folder = tmp_path / "checks"
    folder.mkdir()
    query = folder / "orphans.sql"

    def digest_of(**more: object) -> str:
        found = settings_of({"identity_file": "id.toml", "checks_dir": str(folder), **more})
        assert found.verify is not None
        return policy_of(found.verify, found).sha256

    empty = digest_of()
    query.write_text("SELECT 1")
    before = digest_of()
    assert before == digest_of()
    query.write_text("SELECT 1 WHERE false")
    found = [
        digest_of(),
        digest_of(marker="SELECT max(at) FROM beats"),
        digest_of(network="host"),
        digest_of(preload_libraries=["x"]),
        digest_of(checks_dir=str(tmp_path / "not there")),
    ]
    assert len({empty, before, *found}) == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("every", "5s"),
        ("target", "given"),
        ("network", "all"),
        ("rto", 0),
        ("marker", ""),
        ("marker_every", "never"),
        ("consolidate", "yes"),
        ("preload_libraries", ["a b; c"]),
        ("organisation", "St.\nElsewhere"),
        ("identty_file", "x"),
    ],
)
def test_a_mistake_is_named_by_its_place(name: str, value: object) -> None:
    found = check_tables(
        tables({"identity_file": "id.toml", name: value}), base=BASE, path=BASE / "pitr.toml"
    )
    assert isinstance(found, list)
    assert [mistake.place[:2] for mistake in found] == [("verify", name)]


def test_a_table_without_an_identity_is_a_mistake() -> None:
    found = check_tables(tables({}), base=BASE, path=BASE / "pitr.toml")
    assert isinstance(found, list)
    assert [mistake.place for mistake in found] == [("verify", "identity_file")]


def test_components_are_drilled_daily_and_the_rest_when_it_is_asked_for() -> None:
    found = settings_of({"identity_file": "/vault/identity.toml"}).verify
    assert found is not None
    assert dict(found.drills.every_s) == {
        "components": 86_400.0,
        "failover": None,
        "full": None,
        "disaster": None,
    }
    assert (found.owner, found.due_s) == ("", 14 * 86_400.0)
    assert default_verify(BASE, BASE, "clinic").drills.every_s == {}


def test_drills_have_times_scenarios_and_regions_of_their_own() -> None:
    drills = {
        "components": "never",
        "failover": "30d",
        "disaster": "91d",
        "disaster_scenario": "region-loss.toml",
        "region": "us",
        "primary_region": "eu",
        "clients": 8,
        "load": "10s",
        "probe_production": True,
    }
    found = settings_of({"identity_file": "i", "owner": "dba", "due": "7d", "drills": drills}).verify
    assert found is not None
    assert found.drills.every_s["components"] is None
    assert (found.drills.every_s["failover"], found.drills.every_s["disaster"]) == (2_592_000.0, 7_862_400.0)
    assert found.drills.scenarios == {"disaster": BASE / "region-loss.toml"}
    assert (found.drills.region, found.drills.primary_region, found.drills.clients) == ("us", "eu", 8)
    assert (found.drills.load_s, found.drills.probes_production) == (10.0, True)
    assert (found.owner, found.due_s) == ("dba", 7 * 86_400.0)


def test_a_mistyped_drill_is_told_with_what_is_probably_meant() -> None:
    found = check_tables(
        tables({"identity_file": "i", "drills": {"failovr": "30d", "clients": 0}}),
        base=BASE,
        path=BASE / "pitr.toml",
    )
    assert not isinstance(found, Settings)
    told = {one.name: one.text for one in found}
    assert told["verify.drills.failovr"] == "there is no such setting; did you mean 'failover'?"
    assert "verify.drills.clients" in told
