"""Files of a verifier that may be in a folder which this user may not look into.

A name that is too long stands for it: root, whom tests may run as, may look into every folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fix_config import BASE, least_tables

from cli.config_schema import check_tables
from cli.doctor_verify import examine_verify
from cli.forecast import learn_from
from cli.settings import Settings
from cli.verify_consolidate import why_not_here
from cli.verify_log import verifier_key
from pitr.errors import KeyMissing
from storage.memory import MemoryStore
from verifiers.base import Severity

CLOSED = Path("/", "x" * 300)


def settings_with(**verify: Any) -> Settings:
    found = check_tables(
        least_tables(verify={"identity_file": "identity.toml", **verify}), base=BASE, path=BASE / "pitr.toml"
    )
    assert isinstance(found, Settings), found
    return found


def test_the_place_is_one_that_may_not_be_looked_at() -> None:
    with pytest.raises(OSError, match="File name too long"):
        CLOSED.exists()


def test_a_verifiers_key_there_is_missing_which_the_daemon_knows_how_to_tell() -> None:
    verify = settings_with(key_file=str(CLOSED)).verify
    assert verify is not None
    with pytest.raises(KeyMissing, match="cannot be read"):
        verifier_key(verify)
    finding = examine_verify(verify)
    assert (finding.severity, finding.hint) == (Severity.FAIL, "check the path and its owner")
    assert "File name too long" in finding.message


def test_a_public_key_there_leaves_a_plan_without_a_forecast_and_does_not_end_it() -> None:
    with pytest.raises(KeyMissing, match="the public key"):
        learn_from(MemoryStore(), CLOSED, 1, ())


def test_a_signing_key_there_is_in_doubt_the_writers() -> None:
    keys = least_tables()["keys"] | {"signing_key_file": str(CLOSED)}
    found = check_tables(least_tables(keys=keys), base=BASE, path=BASE / "pitr.toml")
    assert isinstance(found, Settings)
    assert "this is the host that writes the archive" in str(why_not_here(found))
