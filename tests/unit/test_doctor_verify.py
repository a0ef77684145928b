"""What ``pitr doctor`` says of verifications and drills that the daemon holds, or does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fix_config import BASE, least_tables

from cli.config_schema import check_tables
from cli.doctor_verify import examine_verify
from cli.key_files import write_secret
from cli.settings import Settings
from pitr.pipeline.keys import Identity, IdentityFile
from pitr.pipeline.sign import Signer
from verifiers.base import Finding, Severity

MONTHLY = {"failover": "30d", "full": "30d"}


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    identity = Identity(bytes(range(32)))
    file = IdentityFile(identity, "a" * 32, identity.root_signer().public)
    write_secret(tmp_path / "identity.toml", file.render())
    write_secret(tmp_path / "verifier.key", Signer(bytes(32)).text())
    return {
        "identity_file": str(tmp_path / "identity.toml"),
        "key_file": str(tmp_path / "verifier.key"),
    }


def examined(**verify: Any) -> Finding:
    found = check_tables(least_tables(verify=verify), base=BASE, path=BASE / "pitr.toml")
    assert isinstance(found, Settings), found
    return examine_verify(found.verify)


def test_drills_that_nobody_planned_are_named_with_what_is_usual(keys: dict[str, str]) -> None:
    found = examined(**keys, drills={**MONTHLY, "components": "never"})
    assert (found.severity, found.id) == (Severity.OK, "verify.configured")
    assert found.message.startswith("a restore is verified every 604800 s; ")
    assert found.message.endswith("only when somebody starts one: components, disaster")
    assert found.hint == 'usual: [verify.drills] components = "1d", disaster = "91d"'


def test_a_plan_of_every_kind_needs_no_hint(keys: dict[str, str]) -> None:
    found = examined(**keys, drills={**MONTHLY, "disaster": "91d"})
    assert (found.severity, found.hint) == (Severity.OK, None)
    assert found.message.endswith("every kind of drill is held")


def test_without_a_verification_the_drills_are_not_spoken_of(keys: dict[str, str]) -> None:
    assert examined(**keys, every="never", drills=MONTHLY).severity is Severity.WARN
